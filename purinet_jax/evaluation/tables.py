"""Evaluations as tables: rows of numbers with their protocol, and the paper's where they are comparable, as plain text,
Markdown, LaTeX, CSV and JSON.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from purinet_jax.errors import summarise
from purinet_jax.evaluation.evaluate import Evaluation
from purinet_jax.evaluation.metrics import NUMBERS, Protocol
from purinet_jax.evaluation.paper import known_test_set, published_numbers

# Headings, plain and in LaTeX: wF is weighted F, "adp" is at the adaptive threshold, BIoU is boundary IoU.
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
    """One row of a table.

    Attributes:
      data_set: its name.
      protocol: the protocol of all numbers.
      method: its name, or the network's in the paper.
      source: "measured" or "paper".
      images: how many.
      skipped: how many files were left out because they have no counterpart.
      size: side of the network's input, pixels; None if unknown.
      numbers: by name, in [0, 1], not rounded; of the paper's only those that it gives.
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
    """Returns the rows of evaluations by data set, protocol and method, in the order of the evaluations; the paper's
    numbers follow a data set's "purnet" rows."""
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
    """Returns the notes on a table, one line each: incomplete data sets, and files that were left out."""
    lines = []
    for each in evaluations:
        known = known_test_set(each.ground_truth)
        if known is not None and each.images != known.counts["test"]:
            lines.append(
                f"{each.ground_truth}, {each.method}: {each.images:,} images, not the published "
                f"{known.counts['test']:,}: not comparable with published numbers"
            )
        if each.skipped:
            files = summarise(each.skipped, "unpaired file")
            lines.append(f"{each.ground_truth}, {each.method}: without {files}")
    return lines


def to_text(rows: Sequence[Row]) -> str:
    """A table for a terminal, with an empty line between rows that are not comparable."""
    lines = [[*_TEXT_COLUMNS, *(plain for plain, _ in _HEADINGS.values())], *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for index, line in enumerate(lines):
        if index > 1 and _group(rows[index - 1]) != _group(rows[index - 2]):
            text += "\n"
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells[:3] = [cell.ljust(width) for cell, width in zip(line[:3], widths, strict=False)]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def to_markdown(rows: Sequence[Row]) -> str:
    """A table in GitHub's Markdown."""
    numbers = [f"{plain} {'↓' if name == 'mae' else '↑'}" for name, (plain, _) in _HEADINGS.items()]
    rules = ["---"] * 3 + ["---:"] * (1 + len(numbers))
    cells = [[cell.replace("|", "\\|") for cell in _cells(row)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in ([*_TEXT_COLUMNS, *numbers], rules, *cells))


def to_latex(rows: Sequence[Row]) -> str:
    """A LaTeX `tabular`; needs the package booktabs."""
    numbers = [rf"{latex} $\{'down' if name == 'mae' else 'up'}arrow$" for name, (_, latex) in _HEADINGS.items()]
    lines = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{lll{'r' * (1 + len(numbers))}}}", r"\toprule"]
    lines.append(" & ".join([*_TEXT_COLUMNS, *numbers]) + r" \\")
    for index, row in enumerate(rows):
        if index == 0 or _group(row) != _group(rows[index - 1]):
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_escape, _cells(row))) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """Comma-separated values with all digits, empty where the paper gives no number."""
    return _csv([_record(row) for row in rows])


def to_json(rows: Sequence[Row]) -> str:
    """A JSON array of one object per row, with all digits, null where the paper gives no number."""
    return json.dumps([_record(row) for row in rows], indent=2) + "\n"


def per_image_csv(evaluations: Sequence[Evaluation]) -> str:
    """Each image's numbers as comma-separated values, by descending mean absolute error of the first protocol.

    Args:
      evaluations: made with `per_image`, by the same protocols.

    Returns:
      A line per data set, method and image, with a column per protocol and number, such as "purnet_mae".
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
    # Three digits, as the field prints them.
    numbers = [f"{row.numbers[name]:.3f}".removeprefix("0") if name in row.numbers else "-" for name in _HEADINGS]
    return [row.data_set, row.protocol, method, f"{row.images:,}", *numbers]


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "--" if text == "-" else "".join(special.get(character, character) for character in text)


def _record(row: Row) -> dict[str, Any]:
    record = {**vars(row), **{name: row.numbers.get(name) for name in NUMBERS}}
    del record["numbers"]
    return record


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, records[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()
