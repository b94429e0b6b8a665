"""What one part brings: two runs that differ by one setting, compared on the pairs that neither has seen.

    python examples/ablation.py DUTS-TR.zip mobilenet_v2.npz runs/promotion

The promotion attention against none of it; `scripts/ablation.sh` is the whole table of the paper's parts, by the same
configuration and the same measuring (docs/ablation.md). Run it again after whatever stopped it and it goes on.
"""

import argparse
from pathlib import Path

from purinet_jax.evaluation.ablation import measure_runs, to_markdown
from purinet_jax.training import load_config
from purinet_jax.training.train import train

ROWS = {
    "baseline": ["--config.model.attention=()", "--config.losses.structural=none"],
    "promotion": ["--config.model.attention=('promotion',)", "--config.losses.structural=none"],
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("init", type=Path, help="the extractor's weights")
    parser.add_argument("output", type=Path)
    options, overrides = parser.parse_known_args(arguments)
    for name, parts in ROWS.items():
        config = load_config("ablation", [*overrides, *parts])
        state = train(config, options.data, options.output / f"seed{config.seed}" / name, init=options.init)
        if int(state.step) < config.steps:  # asked to stop
            return
    print(to_markdown(measure_runs(options.data, options.output)), end="")


if __name__ == "__main__":
    main()
