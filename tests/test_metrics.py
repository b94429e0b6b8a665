"""The measures against the authors' MATLAB code, PySODMetrics' published numbers, and PySODMetrics itself."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from purinet_jax.data.images import read_grey
from purinet_jax.errors import InputError
from purinet_jax.metrics import Measures, Totals, measure

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "metrics"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
AUTHORS, PYSOD = EXPECTED["authors_matlab"], EXPECTED["pysodmetrics_1.6.2"]


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    return read_grey(GOLDEN / "pred" / name), read_grey(GOLDEN / "gt" / name)


@pytest.mark.parametrize("name", AUTHORS["images"])
def test_the_authors_numbers_of_each_image(name: str) -> None:
    measures = measure(*read(name), "purnet")
    assert measures.mae == pytest.approx(AUTHORS["images"][name]["mae"], abs=1e-6)
    assert measures.weighted_f == pytest.approx(AUTHORS["images"][name]["weighted_f"], abs=2e-4)


def average(names: list[str], protocol: Any) -> Measures:
    return sum((measure(*read(name), protocol) for name in names), Totals(protocol)).average()


def test_the_authors_numbers_of_the_data_set() -> None:
    result = average(list(AUTHORS["images"]), "purnet")
    assert result.mae == pytest.approx(AUTHORS["mae"], abs=1e-6)
    assert result.f_adaptive == pytest.approx(AUTHORS["f_adaptive"], abs=1e-6)
    assert result.weighted_f == pytest.approx(AUTHORS["weighted_f"], abs=2e-4)


def test_pysodmetrics_published_numbers() -> None:
    numbers = average(PYSOD["images"], "pysod").numbers()
    for name in PYSOD.keys() - {"images"}:
        assert numbers[name] == pytest.approx(PYSOD[name], abs=1e-6), name


def test_totals_merge_in_any_grouping() -> None:
    measures = [measure(*read(name), "pysod") for name in PYSOD["images"][:5]]
    halves = sum(measures[:2], Totals("pysod")) + sum(measures[2:], Totals("pysod"))
    whole = sum(measures, Totals("pysod"))
    assert halves.images == whole.images == 5
    for one, other in zip(halves.average(), whole.average(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    with pytest.raises(InputError, match="no images"):
        Totals("pysod").average()
    with pytest.raises(ValueError, match="two protocols"):
        whole + Totals("purnet")


def example(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A map and a mask of any size, of every fifth one of the two degenerate."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2)
    rows, columns = np.mgrid[:height, :width]
    y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(1, 40)
    mask = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2) * np.uint8(255)
    noise = rng.normal(0, rng.uniform(1, 90), mask.shape)
    saliency = np.clip(mask * rng.uniform(0.2, 1) + noise + rng.uniform(0, 60), 0, 255).astype(np.uint8)
    match seed % 10:
        case 0:
            mask[:] = 0
        case 5:
            mask[:] = 255
        case 7:
            saliency[:] = rng.integers(0, 256)
    return saliency, mask


@pytest.mark.parametrize("seed", range(60))
def test_pysod_equals_pysodmetrics_itself(seed: int) -> None:
    import py_sod_metrics

    saliency, mask = example(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Fmeasure will go, and of its divisions by nothing
        theirs = {
            name: getattr(py_sod_metrics, name)()
            for name in ("MAE", "Fmeasure", "WeightedFmeasure", "Smeasure", "Emeasure")
        }
        for metric in theirs.values():
            metric.step(saliency, mask)
        f, e = theirs["Fmeasure"].get_results()["fm"], theirs["Emeasure"].get_results()["em"]
        expected = {
            "mae": theirs["MAE"].get_results()["mae"],
            "weighted_f": theirs["WeightedFmeasure"].get_results()["wfm"],
            "s_measure": theirs["Smeasure"].get_results()["sm"],
            "f_adaptive": f["adp"],
            "f_mean": f["curve"].mean(),
            "f_max": f["curve"].max(),
            "e_adaptive": e["adp"],
            "e_mean": e["curve"].mean(),
            "e_max": e["curve"].max(),
        }
    numbers = measure(saliency, mask, "pysod").numbers()
    for name, value in expected.items():
        if np.isnan(value):
            continue  # a single row or column, where PySODMetrics divides by nothing
        assert numbers[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("protocol", ["purnet", "pysod"])
def test_a_perfect_map_and_its_mirror_image(protocol: Any) -> None:
    _, mask = example(1)
    for turned in (mask, mask[:, ::-1], mask[::-1]):
        numbers = measure(np.ascontiguousarray(turned), np.ascontiguousarray(turned), protocol).numbers()
        assert numbers["mae"] == 0
        for name in ("weighted_f", "s_measure", "f_max", "e_max", "boundary_iou"):
            assert numbers[name] == pytest.approx(1, abs=1e-3), name
    recall = measure(*example(2), protocol).recall
    assert (np.diff(recall) <= 0).all()


def test_a_mask_of_zeros_and_ones_is_not_all_ground() -> None:
    saliency, mask = example(3)
    assert measure(saliency, mask // 255, "pysod").mae == measure(saliency, mask, "pysod").mae


@pytest.mark.parametrize(
    ("saliency", "mask", "message"),
    [
        (np.full((3, 4), np.nan), np.ones((3, 4), bool), "NaN"),
        (np.ones((3, 4), np.int32), np.ones((3, 4), bool), "int32"),
        (np.ones((3, 4), np.uint8), np.ones((3, 4), np.float32), "float32"),
        (np.ones((3, 4), np.uint8), np.ones((4, 4), np.uint8), "4×3"),
        (np.full((3, 4), 7.0), np.ones((3, 4), bool), "7"),
    ],
)
def test_what_cannot_be_measured_is_named(saliency: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(saliency, mask, "pysod", "one.png")
