"""The measures against the authors' MATLAB code, PySODMetrics' published numbers, and PySODMetrics itself."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from purinet_jax.data.images import read_grey
from purinet_jax.errors import InputError
from purinet_jax.evaluation.metrics import Measures, Totals, measure
from purinet_jax.evaluation.metrics.weighted import weighted_f

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
    together = sum(measures, Totals("pysod"))
    assert halves.images == together.images == 5
    for one, other in zip(halves.average(), together.average(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    with pytest.raises(InputError, match="no images"):
        Totals("pysod").average()
    with pytest.raises(ValueError, match="two protocols"):
        together + Totals("purnet")


def example(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A map and a mask of any size; in every fifth example one of the two is degenerate."""
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
        warnings.simplefilter("ignore")  # Fmeasure is deprecated and divides by zero
        theirs = {
            name: getattr(py_sod_metrics, name)()
            for name in ("MAE", "Fmeasure", "WeightedFmeasure", "Smeasure", "Emeasure")
        }
        for metric in theirs.values():
            metric.step(saliency, mask)
        results = {name: metric.get_results() for name, metric in theirs.items()}
    f, e = results["Fmeasure"], results["Emeasure"]["em"]
    measures = measure(saliency, mask, "pysod")
    # Their curves run from threshold 255 down.
    for ours, curve in (
        (measures.precision, f["pr"]["p"]),
        (measures.recall, f["pr"]["r"]),
        (measures.f, f["fm"]["curve"]),
        (measures.e, e["curve"]),
    ):
        np.testing.assert_allclose(ours, curve[::-1], atol=1e-6)
    assert measures.mae == pytest.approx(results["MAE"]["mae"], abs=1e-6)
    assert measures.weighted_f == pytest.approx(results["WeightedFmeasure"]["wfm"], abs=1e-6)
    assert measures.f_adaptive == pytest.approx(f["fm"]["adp"], abs=1e-6)
    assert measures.e_adaptive == pytest.approx(e["adp"], abs=1e-6)
    s = results["Smeasure"]["sm"]
    if np.isnan(s):
        assert has_empty_quadrant(mask > 128)  # the documented difference
    elif saliency.min() < saliency.max():  # theirs depends on rounding for a constant map
        assert measures.s_measure == pytest.approx(s, abs=1e-6)
    assert 0 <= measures.s_measure <= 1


def has_empty_quadrant(objects: np.ndarray) -> bool:
    centre = np.argwhere(objects).mean(0).round() + 1
    return bool((centre >= objects.shape).any())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (40, 30)])
@pytest.mark.parametrize("density", [0.03, 0.3, 0.8])
def test_weighted_f_of_scattered_objects_equals_pysodmetrics(shape: tuple[int, int], density: float) -> None:
    """Many pixels are equally near here, and which one counts changes the result."""
    from py_sod_metrics import WeightedFmeasure

    rng = np.random.default_rng(0)
    for _ in range(10):
        values, objects = rng.random(shape), rng.random(shape) < density
        theirs = WeightedFmeasure()
        theirs.step(values, objects, normalize=False)
        assert weighted_f(values, objects) == pytest.approx(theirs.get_results()["wfm"], abs=1e-6)


@pytest.mark.parametrize("seed", range(1, 10, 2))
def test_e_curve_equals_its_definition(seed: int) -> None:
    saliency, mask = example(seed)
    saliency, mask = saliency[:20, :20], mask[:20, :20]
    if mask.min() == mask.max() or saliency.min() == saliency.max():
        mask[0, 0], mask[-1, -1] = 0, 255
        saliency[0, 0], saliency[-1, -1] = 10, 200
    levels = np.floor((saliency / 255 - saliency.min() / 255) / np.ptp(saliency / 255) * 255)
    b = (mask > 128) - (mask > 128).mean()
    curve = measure(saliency, mask, "pysod").e
    for threshold in range(256):
        found = levels >= threshold
        a = found - found.mean()
        e = ((1 + 2 * a * b / (a * a + b * b)) ** 2 / 4).sum() / (mask.size - 1)
        assert curve[threshold] == pytest.approx(e, abs=1e-9)


def test_float_maps_of_any_range_equal_uint8_maps() -> None:
    saliency, mask = example(4)
    expected = measure(saliency, mask, "purnet")
    for floats in (saliency / np.float32(255), saliency.astype(np.float64) * 3 - 100):
        for one, other in zip(measure(floats, mask, "purnet"), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-2)  # a value at a threshold may fall to either side
        assert measure(floats, mask, "purnet").mae == pytest.approx(expected.mae, abs=1e-6)
        assert measure(floats, mask, "purnet").s_measure == pytest.approx(expected.s_measure, abs=1e-6)


@pytest.mark.parametrize("seed", range(1, 5))
def test_numbers_that_do_not_depend_on_position_or_orientation(seed: int) -> None:
    saliency, mask = example(seed)
    order = np.random.default_rng(seed).permutation(mask.size)
    shuffled, flipped, original = (
        measure(saliency.ravel()[order].reshape(mask.shape), mask.ravel()[order].reshape(mask.shape), "pysod"),
        measure(saliency[::-1, ::-1], mask[::-1, ::-1], "pysod"),
        measure(saliency, mask, "pysod"),
    )
    for name in ("mae", "f_max", "f_mean", "f_adaptive", "e_max", "e_mean", "e_adaptive"):
        assert getattr(shuffled, name) == pytest.approx(getattr(original, name), abs=1e-12), name
    assert flipped.boundary_iou == original.boundary_iou
    assert flipped.weighted_f == pytest.approx(
        original.weighted_f, abs=1e-2
    )  # of equally near pixels another one counts


def test_masks_without_object_or_without_background() -> None:
    saliency = np.tile(np.arange(0, 256, 51, dtype=np.uint8), (4, 1))
    empty, full = np.zeros_like(saliency), np.full_like(saliency, 255)
    for protocol in ("purnet", "pysod"):
        of_empty, of_full = measure(saliency, empty, protocol), measure(saliency, full, protocol)
        assert of_empty.mae == pytest.approx(0.5) == of_full.mae
        assert of_empty.s_measure == pytest.approx(0.5) == of_full.s_measure
        assert of_empty.weighted_f == of_empty.f_max == of_empty.boundary_iou == 0
        assert of_full.precision[0] == of_full.recall[0] == of_full.f_max == 1
        assert of_empty.e_max == pytest.approx(20 / 23)
        assert of_full.e_max == pytest.approx(24 / 23)
        assert measure(empty, empty, protocol).boundary_iou == 1


def test_boundary_iou_of_a_moved_square() -> None:
    mask = np.zeros((60, 80), np.uint8)  # 2 % of its diagonal are 2 pixels
    moved = mask.copy()
    mask[10:40, 10:40] = moved[10:40, 12:42] = 255
    ring = 30 * 30 - 26 * 26
    common = 2 * 2 * 28  # above and below; the vertical strips do not overlap
    assert measure(moved, mask, "pysod").boundary_iou == pytest.approx(common / (2 * ring - common))


def test_purnet_resizes_by_nearest_pixels_and_leaves_soft_edges_out_of_precision() -> None:
    small = np.array([[0, 255], [255, 0]], np.uint8)
    mask = np.kron(small, np.ones((2, 2), np.uint8))
    assert measure(small, mask, "purnet").mae == 0
    mask[0, 2] = 128
    measures = measure(small, mask, "purnet")
    assert measures.mae == pytest.approx(1 / 16)
    assert measures.precision_adaptive == measures.recall_adaptive == 1
    assert measures.f_adaptive == pytest.approx(1)


def test_purnet_averages_precision_and_recall_before_f() -> None:
    totals = sum((measure(*example(seed), "purnet") for seed in (1, 2, 3)), Totals("purnet"))
    one = totals.average()
    precision, recall = one.precision_adaptive, one.recall_adaptive
    assert one.f_adaptive == pytest.approx(1.3 * precision * recall / (0.3 * precision + recall))
    np.testing.assert_allclose(one.f * (0.3 * one.precision + one.recall), 1.3 * one.precision * one.recall, atol=1e-12)
    assert one.f_adaptive != pytest.approx(totals.sums.f_adaptive / 3, abs=1e-6)


RAMP = np.tile(np.arange(0, 256, 51, dtype=np.uint8), (2, 1))  # 0 to 1 in fifths


def test_mean_absolute_error_of_known_maps() -> None:
    mask = np.array([[0, 0, 0, 255, 255, 255]] * 2, np.uint8)
    for protocol in ("purnet", "pysod"):
        assert measure(RAMP, mask, protocol).mae == pytest.approx(0.2)
        assert measure(RAMP, mask > 0, protocol).mae == pytest.approx(0.2)
        assert measure(255 - RAMP, mask, protocol).mae == pytest.approx(0.8)
        assert measure(mask, mask, protocol).mae == 0


def test_maps_are_stretched_to_the_full_range_unless_constant() -> None:
    mask, empty = RAMP > 100, np.zeros((2, 6), bool)
    for protocol in ("purnet", "pysod"):
        expected = measure(RAMP, mask, protocol).mae
        assert measure(RAMP // 3 + 20, mask, protocol).mae == pytest.approx(expected)
        assert measure(0.1 + RAMP / 1000, mask, protocol).mae == pytest.approx(expected)
        assert measure(np.full((2, 6), 51, np.uint8), empty, protocol).mae == pytest.approx(0.2)
        assert measure(np.full((2, 6), 0.2), empty, protocol).mae == pytest.approx(0.2)


@pytest.mark.parametrize(("protocol", "objects"), [("purnet", [0, 0, 0, 0, 0, 1]), ("pysod", [0, 0, 0, 1, 1, 1])])
def test_protocols_cut_grey_masks_differently(protocol: Any, objects: list[int]) -> None:
    mask = np.array([[0, 1, 128, 129, 254, 255]] * 2, np.uint8)
    expected = measure(RAMP, np.array([objects] * 2, bool), protocol).mae
    assert measure(RAMP, mask, protocol).mae == expected


@pytest.mark.parametrize("protocol", ["purnet", "pysod"])
def test_numbers_do_not_depend_on_the_addresses_of_arrays(protocol: Any) -> None:
    """Otherwise totals would differ between processes, and with the number of workers."""
    saliency, mask = read(PYSOD["images"][0])
    expected = measure(saliency, mask, protocol)
    for offset in range(1, 64, 9):
        moved = []
        for array in (saliency, mask):
            memory = np.empty(array.size + 64, np.uint8)
            moved.append(memory[offset : offset + array.size].reshape(array.shape))
            moved[-1][:] = array
        kept = [np.empty(1000 * offset) for _ in range(offset)]  # so that temporary arrays have other addresses, too
        for one, other in zip(measure(*moved, protocol), expected, strict=True):
            assert np.array_equal(one, other)
        del kept


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


def test_a_mask_of_zeros_and_ones_is_not_all_background() -> None:
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
def test_unusable_maps_are_refused(saliency: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(saliency, mask, "pysod", "one.png")
