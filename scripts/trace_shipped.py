"""Traces the package's networks anew, and writes their programs beside their weights.

python scripts/trace_shipped.py
"""

from purinet_jax.weights.shipped import NETWORKS, trace_shipped, traced_file, write_traced

if __name__ == "__main__":
    for name in NETWORKS:
        write_traced(name, trace_shipped(name))
        print(f"{traced_file(name)}: {traced_file(name).stat().st_size:,} bytes")
