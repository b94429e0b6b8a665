"""Specks that are removed from maps, and holes that are filled; the edges of what is kept do not change."""

import cv2
import numpy as np
import pytest

from purinet_jax.prediction.cleaning import clean
from purinet_jax.prediction.cutouts import cutout

SIZES = [(120, 180), (1200, 1800)]  # the second is larger than the image in which distances are measured


def soft_discs(size: tuple[int, int], *discs: tuple[float, float, float], level: int = 255) -> np.ndarray:
    """A map of discs (row, column and radius in hundredths of the height) with soft edges."""
    unit = size[0] / 100
    rows, columns = np.mgrid[: size[0], : size[1]] / unit
    saliency = np.zeros(size)
    for row, column, radius in discs:
        saliency = np.maximum(saliency, np.clip(radius - np.hypot(rows - row, columns - column) + 0.5, 0, 1))
    return np.rint(level * cv2.GaussianBlur(saliency, (0, 0), unit)).astype(np.uint8)


def cleaned(saliency: np.ndarray, **options: float) -> np.ndarray:
    result = saliency.copy()
    clean(result, 0.5, **options)
    return result


OBJECT, SPECK, OTHER = (50, 50, 25), (15, 140, 4), (50, 125, 15)


@pytest.mark.parametrize("size", SIZES)
def test_specks_are_removed_with_their_soft_edges_and_the_rest_is_as_without_them(size: tuple[int, int]) -> None:
    everything = soft_discs(size, OBJECT, SPECK, OTHER)
    largest, two = soft_discs(size, OBJECT), soft_discs(size, OBJECT, OTHER)
    np.testing.assert_array_equal(cleaned(everything, keep_largest=True), largest)
    np.testing.assert_array_equal(cleaned(everything, min_area=0.01), two)
    np.testing.assert_array_equal(cleaned(everything, min_area=0.08), largest)
    np.testing.assert_array_equal(cleaned(everything, min_area=0.001), everything)
    np.testing.assert_array_equal(cleaned(everything), everything)
    np.testing.assert_array_equal(cleaned(two, keep_largest=True, min_area=0.2), np.zeros_like(two))


def test_single_pixels_of_a_large_map_are_removed() -> None:
    saliency = soft_discs(SIZES[1], OBJECT)
    speckled = saliency.copy()
    speckled[100:1100:100, 1500::50] = 255
    np.testing.assert_array_equal(cleaned(speckled, min_area=1e-5), saliency)


def test_what_stays_below_the_threshold_is_removed_unless_it_is_connected() -> None:
    """A faint speck would be visible in a cut-out, which is transparent well below the threshold only."""
    faint = soft_discs(SIZES[0], (20, 140, 10), level=100)
    tail = soft_discs(SIZES[0], (50, 80, 12), level=100)
    solid = soft_discs(SIZES[0], OBJECT)
    kept = np.maximum(solid, tail)
    np.testing.assert_array_equal(cleaned(np.maximum(kept, faint), keep_largest=True), kept)
    assert not cleaned(faint, keep_largest=True).any()


@pytest.mark.parametrize("size", SIZES)
def test_holes_are_filled_with_their_soft_edges(size: tuple[int, int]) -> None:
    solid = soft_discs(size, OBJECT)
    pierced = np.minimum(solid, 255 - soft_discs(size, (50, 50, 8), (50, 68, 2)))
    filled = cleaned(pierced, fill_holes=True)
    assert np.abs(filled.astype(int) - solid).max() <= 2
    image = np.zeros((*size, 3), np.uint8)
    assert np.abs(cutout(image, filled).astype(int) - cutout(image, solid)).max() <= 2
    np.testing.assert_array_equal(cleaned(solid, fill_holes=True), solid)


def test_bays_and_the_outside_are_no_holes() -> None:
    saliency = soft_discs(SIZES[0], OBJECT)
    saliency[50:, 48:52] = 0
    np.testing.assert_array_equal(cleaned(saliency, fill_holes=True), saliency)
    for constant in (0, 255):
        full = np.full((5, 7), constant, np.uint8)
        np.testing.assert_array_equal(cleaned(full, fill_holes=True, keep_largest=True), full)
    np.testing.assert_array_equal(cleaned(np.full((1, 1), 200, np.uint8), keep_largest=True), [[200]])


def test_holes_are_filled_before_the_largest_part_is_found() -> None:
    ring = np.zeros((60, 100), np.uint8)
    ring[10:50, 10:50] = 255
    ring[13:47, 13:47] = 0
    ring[20:50, 60:90] = 255
    found = cleaned(ring, fill_holes=True, keep_largest=True)
    assert found[10:50, 10:50].min() == 255
    assert not found[:, 55:].any()


def test_parts_that_touch_by_a_corner_are_one() -> None:
    diagonal = np.diag(np.full(20, 255, np.uint8))
    np.testing.assert_array_equal(cleaned(diagonal, min_area=0.04), diagonal)
    # The two sides of a diagonal line are not connected.
    assert (cleaned(diagonal, fill_holes=True) == diagonal).all()
