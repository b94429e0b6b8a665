"""Traces the network of the package's weights anew, and writes the program beside them.

python scripts/trace_shipped.py
"""

from purinet_jax.weights.shipped import TRACED, trace_shipped, write_traced

if __name__ == "__main__":
    write_traced(trace_shipped())
    print(f"{TRACED}: {TRACED.stat().st_size:,} bytes")
