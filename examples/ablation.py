"""What one part of the network brings: two runs that differ in it, compared on the pairs that neither has seen.

    python examples/ablation.py DUTS-TR.zip mobilenet_v2.npz runs/promotion

Compares the promotion attention with no attention. `scripts/ablation.sh` makes the table of all the paper's parts with
the same configuration and the same measures (docs/ablation.md). Run it again after an interruption and it continues.
"""

import argparse
import sys
from pathlib import Path

from purinet_jax.training import load_config
from purinet_jax.training.train import train

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from ablation_table import measure_runs, to_markdown

ROWS = {
    "baseline": ["--config.model.attention=()", "--config.losses.structural=none"],
    "promotion": ["--config.model.attention=('promotion',)", "--config.losses.structural=none"],
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("init", type=Path, help="the backbone's weights")
    parser.add_argument("output", type=Path)
    options, overrides = parser.parse_known_args(arguments)
    for name, parts in ROWS.items():
        config = load_config("ablation", [*overrides, *parts])
        state = train(config, options.data, options.output / f"seed{config.seed}" / name, init=options.init)
        if int(state.step) < config.steps:  # the run was asked to stop
            return
    print(to_markdown(measure_runs(options.data, options.output)), end="")


if __name__ == "__main__":
    main()
