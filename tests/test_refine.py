"""Guided upsampling against a literal guided filter, OpenCV's interpolation, and an image with known edges."""

import cv2
import numpy as np
import pytest

from purinet_jax.prediction import refine
from purinet_jax.prediction.refine import GuidedFilter, refine_map, refined_strips, upsampled_strips

RNG = np.random.default_rng(0)


def literal_coefficients(values: np.ndarray, guide: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """He, Sun, Tang 2013, equations 19 to 21, window by window in float64."""
    height, width = values.shape
    colours = guide / 255

    def window(row: int, column: int) -> tuple[slice, slice]:
        rows = slice(max(row - radius, 0), row + radius + 1)
        return rows, slice(max(column - radius, 0), column + radius + 1)

    own = np.empty((height, width, 4))
    for row in range(height):
        for column in range(width):
            i = colours[window(row, column)].reshape(-1, 3)
            p = values[window(row, column)].ravel()
            covariance = (i - i.mean(0)).T @ (i - i.mean(0)) / len(i)
            a = np.linalg.solve(covariance + epsilon * np.eye(3), (i * p[:, None]).mean(0) - i.mean(0) * p.mean())
            own[row, column] = *a, p.mean() - a @ i.mean(0)
    return np.array([[own[window(row, column)].mean((0, 1)) for column in range(width)] for row in range(height)])


@pytest.mark.parametrize(("radius", "epsilon"), [(1, 1e-2), (2, 1e-4), (4, 1e-3)])
def test_coefficients_are_those_of_the_formula(radius: int, epsilon: float) -> None:
    guide = RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    values = RNG.normal(size=(9, 12))
    found = cv2.merge(GuidedFilter(guide, radius, epsilon).coefficients(values))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, literal_coefficients(values, guide, radius, epsilon), rtol=1e-3, atol=1e-3)


def test_grey_guides_give_finite_coefficients() -> None:
    grey = RNG.integers(0, 256, (9, 12, 1), dtype=np.uint8).repeat(3, axis=2)
    values = RNG.normal(size=(9, 12))
    for guide in (grey, np.zeros_like(grey), np.full_like(grey, 255)):
        found = GuidedFilter(guide, 2, 1e-4)(values)
        expected = literal_coefficients(values, guide, 2, 1e-4)
        np.testing.assert_allclose(
            found,
            (expected[..., :3] * (guide / 255)).sum(-1) + expected[..., 3],
            atol=1e-2,  # float32; of logits
        )


@pytest.mark.parametrize("shape", [(37, 41), (9, 12), (5, 7), (100, 3), (1, 1), (64, 200)])
@pytest.mark.parametrize("strip", [1, 500, 1 << 20])
def test_strips_are_opencvs_interpolation(shape: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "_STRIP", strip)
    for rows in (9, 1):
        values = RNG.random((rows, 12, 4), np.float32)
        parts = list(upsampled_strips(values, *shape))
        np.testing.assert_array_equal(np.concatenate([np.arange(shape[0])[rows] for rows, _ in parts]), range(shape[0]))
        found = np.concatenate([strip for _, strip in parts], axis=1).transpose(1, 2, 0)
        np.testing.assert_allclose(found, cv2.resize(values, shape[::-1]).reshape(*shape, 4), atol=1e-6)


def test_the_map_is_the_formula_on_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "_STRIP", 100)
    image = RNG.integers(0, 256, (30, 44, 3), dtype=np.uint8)
    square, saliency = image[::2, ::2], RNG.uniform(0.1, 0.9, (15, 22)).astype(np.float32)
    coefficients = literal_coefficients(np.log(saliency / (1 - saliency)), square, refine.RADIUS, refine.EPSILON)
    enlarged = cv2.resize(coefficients, (44, 30))
    logits = (enlarged[..., :3] * (image / 255)).sum(-1) + enlarged[..., 3]
    found = refine_map(saliency, square, image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=2e-3)
    np.testing.assert_array_equal(found, np.concatenate([s for _, s in refined_strips(saliency, square, image)]))


def test_edges_follow_the_image() -> None:
    """A disc whose map is blurred: the refined one is nearer to the disc than the interpolated one."""
    rows, columns = np.mgrid[:256, :256]
    disc = (rows - 120) ** 2 + (columns - 140) ** 2 < 70**2
    image = np.where(disc[..., None], np.uint8([200, 80, 40]), np.uint8([60, 90, 120]))
    square = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    saliency = cv2.GaussianBlur(cv2.resize(disc.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA), (0, 0), 2)
    plain = np.abs(cv2.resize(saliency, (256, 256)) - disc).mean()
    refined = np.abs(refine_map(saliency, square, image) - disc).mean()
    assert refined < plain / 3


def test_maps_of_small_images_are_interpolated_and_constant_ones_stay() -> None:
    saliency = RNG.random((16, 16), np.float32)
    image = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    square = cv2.resize(image, (16, 16))
    np.testing.assert_array_equal(refine_map(saliency, square, image), cv2.resize(saliency, (16, 12)))
    large = cv2.resize(image, (50, 20))
    for value in (0, 0.25, 1):
        found = refine_map(np.full((16, 16), value, np.float32), square, large)
        np.testing.assert_allclose(found, value, atol=2e-3)
        assert found.min() >= 0
        assert found.max() <= 1
