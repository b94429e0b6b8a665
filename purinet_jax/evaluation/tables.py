"""Evaluations as text: rows of numbers, each with its protocol and beside the paper's where there are such, printed for
people (plain, Markdown, LaTeX) or for programs (CSV, JSON).
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from purinet_jax.data.pairs import some
from purinet_jax.evaluation.evaluate import Evaluation
from purinet_jax.evaluation.metrics import NUMBERS, Protocol
from purinet_jax.evaluation.paper import known_test_set, published_numbers

# Headings, plain and LaTeX. F with w is the weighted one, "adp" is at the adaptive threshold, BIoU the boundary IoU.
_HEADINGS = {
    "mae": ("MAE", r"MAE"),
    "weighted_f": ("wF", r"$F^w_\beta$"),
    "s_measure": ("S", r"$S_\alpha$"),
    "f_max": ("maxF", r"$F_\beta^{\max}$"),
    "f_mean": ("meanF", r"$F_\beta^{\mathrm{mean}}$"),
    "f_adaptive": ("adpF", r"$F_\beta^{\mathrm{adp}}$"),
    "e_max": ("maxE", r"$E_\xi^{\max}$"),
    "e_mean": ("meanE", r"$E_\xi^{\mathrm{mean}}$"),
    "e_adaptive": ("adpE", r"$E_\xi^{\mathrm{adp}}$"),
    "boundary_iou": ("BIoU", r"BIoU"),
}
_TEXT_COLUMNS = ("data set", "protocol", "method", "images")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      data_set: its name.
      protocol: whose rules all its numbers follow.
      method: its name, or the network's in the paper.
      source: "measured" or "paper".
      images: how many.
      skipped: how many files were left out for want of a counterpart.
      size: side of the network's input, pixels; None where it is not known.
      numbers: by name, in [0, 1] and not rounded; of the paper's only those that it gives.
    """

    data_set: str
    protocol: Protocol
    method: str
    source: str
    images: int
    skipped: int
    size: int | None
    numbers: Mapping[str, float]


def table_rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    """All numbers of evaluations and, below the "purnet" ones of a data set that is in it, those of the paper's table.

    Returns:
      Rows by data set, then protocol, then method, each in the order of the evaluations.
    """
    rows = []
    for data_set in dict.fromkeys(each.ground_truth for each in evaluations):
        own = [each for each in evaluations if each.ground_truth == data_set]
        for protocol in own[0].totals:
            for each in own:
                numbers = each.totals[protocol].average().numbers()
                skipped = len(each.skipped)
                rows.append(Row(data_set, protocol, each.method, "measured", each.images, skipped, each.size, numbers))
            if protocol != "purnet":
                continue
            images = max(each.images for each in own)
            for published in published_numbers(data_set, images):
                numbers = {name: getattr(published, name) for name in ("mae", "weighted_f", "f_adaptive")}
                rows.append(Row(data_set, protocol, published.network, "paper", images, 0, 320, numbers))
    return rows


def notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """What must be said beside a table, a line each: what was left out, and which data sets are not whole."""
    lines = []
    for each in evaluations:
        known = known_test_set(each.ground_truth)
        if known is not None and each.images != known.counts["test"]:
            lines.append(
                f"{each.ground_truth}, {each.method}: {each.images:,} images, not the published "
                f"{known.counts['test']:,}: not comparable with published numbers"
            )
        if each.skipped:
            files = some(each.skipped, "unpaired file")
            lines.append(f"{each.ground_truth}, {each.method}: without {files}")
    return lines


def to_text(rows: Sequence[Row]) -> str:
    """A table for a terminal."""
    lines = [[*_TEXT_COLUMNS, *(plain for plain, _ in _HEADINGS.values())], *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if number < 3 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    # An empty line where the protocol changes: what is above it cannot be compared with what is below.
    broken = [aligned[0]]
    for number, line in enumerate(aligned[1:]):
        if number and _group(rows[number]) != _group(rows[number - 1]):
            broken.append("")
        broken.append(line)
    return "\n".join(broken) + "\n"


def to_markdown(rows: Sequence[Row]) -> str:
    """A table in GitHub's Markdown."""
    arrows = ["↓" if name == "mae" else "↑" for name in _HEADINGS]
    headings = [
        *_TEXT_COLUMNS,
        *(f"{plain} {arrow}" for (plain, _), arrow in zip(_HEADINGS.values(), arrows, strict=True)),
    ]
    rules = ["---"] * 3 + ["---:"] * (len(headings) - 3)
    cells = [[cell.replace("|", "\\|") for cell in _cells(row)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, rules, *cells))


def to_latex(rows: Sequence[Row]) -> str:
    """A LaTeX `tabular`; needs the package booktabs."""
    arrows = [r"$\downarrow$" if name == "mae" else r"$\uparrow$" for name in _HEADINGS]
    headings = [
        *_TEXT_COLUMNS,
        *(f"{latex} {arrow}" for (_, latex), arrow in zip(_HEADINGS.values(), arrows, strict=True)),
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{lll{'r' * (len(headings) - 3)}}}",
        r"\toprule",
        " & ".join(headings) + r" \\",
    ]
    previous = None
    for row in rows:
        if _group(row) != previous:
            lines.append(r"\midrule")
        previous = _group(row)
        lines.append(" & ".join(map(_escape, _cells(row))) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """Comma-separated values with all digits, empty where the paper gives no number."""
    return _csv([_record(row) for row in rows])


def to_json(rows: Sequence[Row]) -> str:
    """A JSON array of one object a row, all digits, null where the paper gives no number."""
    return json.dumps([_record(row) for row in rows], indent=2) + "\n"


def per_image_csv(evaluations: Sequence[Evaluation]) -> str:
    """Each image's numbers as comma-separated values, the worst first: by the first protocol's mean absolute error.

    Args:
      evaluations: made with `per_image`, by the same protocols.

    Returns:
      A line for each data set, method and image; a column for each protocol and number, such as "purnet_mae".
    """
    images = [(image, each) for each in evaluations for image in each.per_image]
    images.sort(key=lambda entry: -entry[0].numbers[0, 0])
    records = []
    for image, each in images:
        record: dict[str, Any] = {"data_set": each.ground_truth, "method": each.method, "image": image.name}
        for protocol, numbers in zip(each.totals, image.numbers, strict=True):
            record |= {f"{protocol}_{name}": float(value) for name, value in zip(NUMBERS, numbers, strict=True)}
        records.append(record)
    return _csv(records)


def _group(row: Row) -> tuple[str, Protocol]:
    return row.data_set, row.protocol


def _cells(row: Row) -> list[str]:
    method = row.method if row.source == "measured" else f"{row.source}: {row.method}"
    numbers = [_rounded(row.numbers[name]) if name in row.numbers else "-" for name in _HEADINGS]
    return [row.data_set, row.protocol, method, f"{row.images:,}", *numbers]


def _rounded(value: float) -> str:
    """Three digits, as the field prints them."""
    return f"{value:.3f}".removeprefix("0")


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "--" if text == "-" else "".join(special.get(character, character) for character in text)


def _record(row: Row) -> dict[str, Any]:
    return {
        "data_set": row.data_set,
        "protocol": row.protocol,
        "method": row.method,
        "source": row.source,
        "images": row.images,
        "skipped": row.skipped,
        "size": row.size,
        **{name: row.numbers.get(name) for name in NUMBERS},
    }


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, records[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()
