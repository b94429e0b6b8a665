"""The table of an ablation: each row's network, of its last step, on the pairs that its run held out.

    python scripts/ablation_table.py DUTS-TR.zip runs/ablation

Reads runs/ablation/seed*/*/, writes ablation.md and ablation.json there, and prints the first. Rows are described by
their runs' configurations, not by their names.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from purinet_jax.errors import InputError, escaped
from purinet_jax.evaluation.evaluate import evaluate
from purinet_jax.evaluation.methods import Network, open_data
from purinet_jax.files import write_atomically
from purinet_jax.network.model import ATTENTIONS
from purinet_jax.prediction.predictor import load
from purinet_jax.weights.runs import FOLDER, HELD_OUT, whole_steps

HEADINGS = {"mae": "MAE ↓", "weighted_f": "wF ↑", "s_measure": "S ↑", "f_max": "maxF ↑", "boundary_iou": "BIoU ↑"}
# What rows may differ in; if anything else differed, the table would compare something else.
PARTS = ("model.attention", "losses.structural", "losses.iou")


@dataclass(frozen=True)
class AblationRow:
    """One row: the runs of the same parts, with one or several seeds.

    Attributes:
      name: that of the runs' folders.
      attention: which of the network's attentions it has.
      structural: the structural term of its loss: "region", "ssim" or "none".
      iou: whether its loss has the soft intersection over union.
      seeds: of its runs, ascending.
      numbers: by name (PySODMetrics' protocol), one per seed, in [0, 1], not rounded.
    """

    name: str
    attention: tuple[str, ...]
    structural: str
    iou: bool
    seeds: tuple[int, ...]
    numbers: Mapping[str, tuple[float, ...]]


def measure_runs(data: str | Path, output: str | Path, *, progress: bool = True) -> list[AblationRow]:
    """Measures the last checkpoint of every run in `output`/seed*/ on the pairs of `data` that the run held out.

    Returns:
      The rows, those with fewer parts first.

    Raises:
      InputError: there are no runs, one is not finished, or two differ in more than the rows' parts and seeds.
    """
    configs = {file.parent: json.loads(file.read_text()) for file in sorted(Path(output).glob("seed*/*/config.json"))}
    if not configs:
        raise InputError(f"{output}: no runs in its folders seed0, seed1 …")
    first = compared(next(iter(configs.values())))
    found: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    for run, config in configs.items():
        for key, value in compared(config).items():
            if value != first.get(key):
                raise InputError(f"{run}: config.{key} is {value!r}, but {first.get(key)!r} in {next(iter(configs))}")
        last = max(whole_steps(run / FOLDER), default=0)
        if last != config["steps"]:
            raise InputError(f"{run}: has come to step {last} of {config['steps']}")
        truth = open_data(data)
        assert truth.pairs is not None
        held = set((run / HELD_OUT).read_text("utf-8", "surrogateescape").splitlines())
        pairs = truth.pairs.subset(index for index, name in enumerate(truth.pairs.names) if escaped(name) in held)
        network = Network(f"{run.parent.name}/{run.name}", load(run / FOLDER / str(last)))
        truth = replace(truth, pairs=pairs)
        (evaluation,) = evaluate([network], [truth], protocols=("pysod",), batch_size=8, progress=progress)
        found.setdefault(run.name, []).append((config["seed"], evaluation.totals["pysod"].average().numbers()))
    rows = []
    for name, measured in found.items():
        config = next(config for run, config in configs.items() if run.name == name)
        parts = (tuple(config["model"]["attention"]), config["losses"]["structural"], config["losses"]["iou"])
        seeds, numbers = zip(*sorted(measured, key=lambda entry: entry[0]), strict=True)
        rows.append(AblationRow(name, *parts, seeds, {key: tuple(float(x[key]) for x in numbers) for key in HEADINGS}))
    return sorted(rows, key=fewest_parts)


def to_markdown(rows: Sequence[AblationRow]) -> str:
    """A table in GitHub's Markdown: means over the seeds, and each MAE minus that of the row with the fewest parts."""
    headings = ["row", *ATTENTIONS, "structural", "IoU", "seeds", "MAE ↓", "ΔMAE", *[*HEADINGS.values()][1:]]
    lines = [headings, ["---"] * 6 + ["---:"] * (len(headings) - 6)]
    means = [{key: float(np.mean(values)) for key, values in row.numbers.items()} for row in rows]
    for row, mean in zip(rows, means, strict=True):
        spread = np.ptp(row.numbers["mae"])
        lines.append(
            [
                row.name,
                *("×" if attention in row.attention else "" for attention in ATTENTIONS),
                "" if row.structural == "none" else row.structural,
                "×" if row.iou else "",
                ", ".join(map(str, row.seeds)),
                f"{mean['mae']:.4f}" + (f" (spread {spread:.4f})" if len(row.seeds) > 1 else ""),
                f"{mean['mae'] - means[0]['mae']:+.4f}",
                *(f"{mean[key]:.3f}".removeprefix("0") for key in [*HEADINGS][1:]),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(rows: Sequence[AblationRow]) -> str:
    """A JSON array of one object per row, with all digits."""
    return json.dumps([vars(row) for row in rows], indent=2) + "\n"


def fewest_parts(row: AblationRow) -> tuple[Any, ...]:
    return len(row.attention), row.attention, row.iou, ("none", "region", "ssim").index(row.structural)


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must be equal in all runs."""
    flat = flatten_dict(config, sep=".")
    return {key: value for key, value in flat.items() if key not in (*PARTS, "seed") and not key.startswith("loop.")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the pairs that the runs were trained on")
    parser.add_argument("output", type=Path, help="the folder of seed0, seed1 …")
    arguments = parser.parse_args()
    rows = measure_runs(arguments.data, arguments.output)
    text = to_markdown(rows)
    write_atomically(arguments.output / "ablation.json", to_json(rows).encode())
    write_atomically(arguments.output / "ablation.md", text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
