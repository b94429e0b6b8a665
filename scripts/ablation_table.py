"""The table of an ablation: each row's network, of its last step, on the pairs that its run held out.

    python scripts/ablation_table.py DUTS-TR.zip runs/ablation

Reads runs/ablation/seed*/*/, writes ablation.md and ablation.json beside them, and prints the first.
"""

import argparse
from pathlib import Path

from purinet_jax.evaluation.ablation import measure_runs, to_json, to_markdown
from purinet_jax.files import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="what the runs were trained on")
    parser.add_argument("output", type=Path, help="the folder of seed0, seed1 …")
    arguments = parser.parse_args()
    rows = measure_runs(arguments.data, arguments.output)
    text = to_markdown(rows)
    write_atomically(arguments.output / "ablation.json", to_json(rows).encode())
    write_atomically(arguments.output / "ablation.md", text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
