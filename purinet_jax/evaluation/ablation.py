"""Runs that differ in parts of the network and terms of the loss, compared on the pairs that each held out: the table
of `scripts/ablation.sh` (docs/ablation.md). Rows are told by their runs' configurations, not by their names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from purinet_jax.errors import InputError
from purinet_jax.evaluation.evaluate import evaluate
from purinet_jax.evaluation.methods import Network, open_data
from purinet_jax.network.model import ATTENTIONS
from purinet_jax.prediction.predictor import load
from purinet_jax.weights.runs import FOLDER, HELD_OUT, whole_steps

_HEADINGS = {"mae": "MAE ↓", "weighted_f": "wF ↑", "s_measure": "S ↑", "f_max": "maxF ↑", "boundary_iou": "BIoU ↑"}
# What rows may differ in; everything else must be the same, or the table would compare something else.
_PARTS = ("model.attention", "losses.structural", "losses.iou")


@dataclass(frozen=True)
class AblationRow:
    """One row: the same parts, with one seed or several.

    Attributes:
      name: that of the runs' folders.
      attention: which of the network's attentions it has.
      structural: the structural term of its loss: "region", "ssim" or "none".
      iou: whether its loss has the soft intersection over union.
      seeds: of its runs, ascending.
      numbers: by name (PySODMetrics' protocol), one for each seed, in [0, 1] and not rounded.
    """

    name: str
    attention: tuple[str, ...]
    structural: str
    iou: bool
    seeds: tuple[int, ...]
    numbers: Mapping[str, tuple[float, ...]]


def measure_runs(
    data: str | Path, output: str | Path, *, batch_size: int = 8, progress: bool = True
) -> list[AblationRow]:
    """Measures the last checkpoint of every run in `output`/seed*/ on the pairs of `data` that the run held out.

    Args:
      data: what the runs were trained on.
      output: the folder of `seed0`, `seed1` …, each with a folder for each row.
      batch_size: how many images a network takes at once.
      progress: whether to show bars on stderr.

    Returns:
      The rows, those with fewer parts first.

    Raises:
      InputError: there are no runs, one has not come to its end, or two differ in more than the rows' parts and seeds.
    """
    configs = {file.parent: json.loads(file.read_text()) for file in sorted(Path(output).glob("seed*/*/config.json"))}
    if not configs:
        raise InputError(f"{output}: no runs in its folders seed0, seed1 …")
    first = _compared(next(iter(configs.values())))
    found: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    for run, config in configs.items():
        for key, value in _compared(config).items():
            if value != first.get(key):
                raise InputError(f"{run}: config.{key} is {value!r}, but {first.get(key)!r} in {next(iter(configs))}")
        last = max(whole_steps(run / FOLDER), default=0)
        if last != config["steps"]:
            raise InputError(f"{run}: has come to step {last} of {config['steps']}")
        truth = open_data(data)
        assert truth.pairs is not None
        held = set((run / HELD_OUT).read_text().splitlines())
        pairs = truth.pairs.subset(index for index, name in enumerate(truth.pairs.names) if name in held)
        (evaluation,) = evaluate(
            [Network(f"{run.parent.name}/{run.name}", load(run / FOLDER / str(last)))],
            [replace(truth, pairs=pairs)],
            protocols=("pysod",),
            batch_size=batch_size,
            progress=progress,
        )
        found.setdefault(run.name, []).append((config["seed"], evaluation.totals["pysod"].average().numbers()))
    rows = []
    for name, measured in found.items():
        config = next(config for run, config in configs.items() if run.name == name)
        measured.sort(key=lambda entry: entry[0])
        rows.append(
            AblationRow(
                name,
                tuple(config["model"]["attention"]),
                config["losses"]["structural"],
                config["losses"]["iou"],
                tuple(seed for seed, _ in measured),
                {key: tuple(float(numbers[key]) for _, numbers in measured) for key in _HEADINGS},
            )
        )
    return sorted(rows, key=_parts)


def to_markdown(rows: Sequence[AblationRow]) -> str:
    """A table in GitHub's Markdown: means over the seeds, and each MAE less that of the row with the fewest parts."""
    headings = ["row", *ATTENTIONS, "structural", "IoU", "seeds", "MAE ↓", "ΔMAE", *[*_HEADINGS.values()][1:]]
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
                *(f"{mean[key]:.3f}".removeprefix("0") for key in [*_HEADINGS][1:]),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(rows: Sequence[AblationRow]) -> str:
    """A JSON array of one object a row, all digits."""
    return json.dumps([vars(row) for row in rows], indent=2) + "\n"


def _parts(row: AblationRow) -> tuple[Any, ...]:
    return len(row.attention), row.attention, row.iou, ("none", "region", "ssim").index(row.structural)


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must be the same in all runs."""
    flat = flatten_dict(config, sep=".")
    return {key: value for key, value in flat.items() if key not in (*_PARTS, "seed") and not key.startswith("loop.")}
