"""Evaluations as tables: every number with its protocol, the paper's numbers where comparable, every format valid."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest

from purinet_jax.evaluation.evaluate import Evaluation, ImageNumbers
from purinet_jax.evaluation.metrics import NUMBERS, Measures, Protocol, Totals
from purinet_jax.evaluation.tables import (
    notes,
    per_image_csv,
    table_rows,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    to_text,
)


def totals(protocol: Protocol, images: int, value: float) -> Totals:
    """The totals of images whose numbers are all `value`, but a weighted F of 1."""
    curve = np.full(256, value * images)
    sums = [value * images] * 8
    return Totals(protocol, images, Measures(*sums, curve, curve, curve, curve)._replace(weighted_f=images))


def evaluation(method: str, data_set: str, images: int, *, skipped: tuple[str, ...] = (), value: float = 0.25) -> Any:
    both: Any = {protocol: totals(protocol, images, value) for protocol in ("purnet", "pysod")}
    return Evaluation(method, data_set, both, skipped, 224, ())


DUTS = [evaluation("ours", "DUTS-TE", 5019), evaluation("R_1 & Co", "DUTS-TE", 5019, value=0.5)]
PART = [evaluation("ours", "part", 7)]


def test_rows_are_grouped_by_data_set_and_protocol_and_the_papers_numbers_follow_purnet_ones() -> None:
    rows = table_rows([*DUTS, *PART])
    assert [(row.data_set, row.protocol, row.method, row.source) for row in rows] == [
        ("DUTS-TE", "purnet", "ours", "measured"),
        ("DUTS-TE", "purnet", "R_1 & Co", "measured"),
        ("DUTS-TE", "purnet", "ResNet-50", "paper"),
        ("DUTS-TE", "purnet", "VGG-16", "paper"),
        ("DUTS-TE", "pysod", "ours", "measured"),
        ("DUTS-TE", "pysod", "R_1 & Co", "measured"),
        ("part", "purnet", "ours", "measured"),
        ("part", "pysod", "ours", "measured"),
    ]
    assert rows[2].numbers == {"mae": 0.039, "weighted_f": 0.817, "f_adaptive": 0.829}
    assert rows[1].numbers == {**dict.fromkeys(NUMBERS, pytest.approx(0.5)), "weighted_f": 1}
    assert [row.images for row in rows] == [5019] * 6 + [7] * 2


def test_an_incomplete_published_set_has_no_rows_of_the_paper_and_a_note() -> None:
    part = evaluation("ours", "DUTS-TE", 300, skipped=("a.png", "b.png", "c.png", "d.png"))
    assert {row.source for row in table_rows([part])} == {"measured"}
    assert [row.skipped for row in table_rows([part])] == [4, 4]
    assert notes([part]) == [
        "DUTS-TE, ours: 300 images, not the published 5,019: not comparable with published numbers",
        "DUTS-TE, ours: without 4 unpaired files: a.png, b.png, c.png, …",
    ]
    assert notes([*DUTS, *PART]) == []


def test_text_is_aligned_and_separates_protocols() -> None:
    lines = to_text(table_rows([*DUTS, *PART])).splitlines()
    assert " ".join(lines[0].split()) == "data set protocol method images MAE wF S maxF meanF adpF maxE meanE adpE BIoU"
    assert lines[1].split() == ["DUTS-TE", "purnet", "ours", "5,019", ".250", "1.000", *[".250"] * 8]
    assert " ".join(lines[3].split()) == "DUTS-TE purnet paper: ResNet-50 5,019 .039 .817 - - - .829 - - - -"
    assert [number for number, line in enumerate(lines) if not line] == [5, 8, 10]
    assert len({len(line) for line in lines if line}) == 1
    assert max(map(len, lines)) <= 120


def test_markdown() -> None:
    lines = to_markdown(table_rows([evaluation("a|b", "part", 7)])).splitlines()
    assert lines[0].startswith("| data set | protocol | method | images | MAE ↓ | wF ↑ |")
    assert lines[2].startswith("| part | purnet | a\\|b | 7 | .250 | 1.000 | .250 |")
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {15}


def test_latex() -> None:
    text = to_latex(table_rows([*DUTS, *PART]))
    lines = text.splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}"
    assert text.count(r"\midrule") == 4
    assert r"DUTS-TE & purnet & R\_1 \& Co & 5,019 & .500 & 1.000 &" in text
    assert "& .039 & .817 & -- & -- & -- & .829 &" in text
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 1 + 8
    assert {line.replace(r"\&", "").count("&") for line in body} == {13}
    assert lines[1] == rf"\begin{{tabular}}{{lll{'r' * 11}}}"


def test_json_and_csv_hold_all_digits() -> None:
    third = evaluation("ours", "DUTS-TE", 5019, value=1 / 3)
    records = json.loads(to_json(table_rows([third])))
    assert records[0]["mae"] == third.totals["purnet"].average().mae
    assert (records[0]["size"], records[0]["skipped"], records[0]["source"]) == (224, 0, "measured")
    assert records[1]["s_measure"] is None
    read = list(csv.DictReader(io.StringIO(to_csv(table_rows([third])))))
    assert [float(row["mae"]) for row in read] == [record["mae"] for record in records]
    assert read[1]["s_measure"] == ""
    assert [row["protocol"] for row in read] == ["purnet", "purnet", "purnet", "pysod"]


def test_each_images_numbers_are_sorted_by_descending_error() -> None:
    generator = np.random.default_rng(0)
    evaluations, errors = [], {}
    for method in ("one", "two"):
        images = tuple(ImageNumbers(f"{k}, of {method}", generator.random((2, len(NUMBERS)))) for k in range(5))
        errors |= {image.name: image.numbers for image in images}
        both: Any = {protocol: Totals(protocol) for protocol in ("purnet", "pysod")}
        evaluations.append(Evaluation(method, "set", both, (), None, (), images))
    read = list(csv.DictReader(io.StringIO(per_image_csv(evaluations))))
    assert [row["image"] for row in read] == sorted(errors, key=lambda name: -errors[name][0, 0])
    for row in read:
        assert row["method"] == row["image"].split()[-1]
        assert float(row["purnet_mae"]) == errors[row["image"]][0, 0]
        assert float(row["pysod_boundary_iou"]) == errors[row["image"]][1, -1]
