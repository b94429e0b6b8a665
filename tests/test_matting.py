"""Matting: against a literal closed-form solution, on made images of known alpha, and for any map and size."""

from types import ModuleType

import cv2
import numpy as np
import pytest
from helpers.project_scripts import import_script

from purinet_jax.prediction import matting
from purinet_jax.prediction.cutouts import cutout
from purinet_jax.prediction.matting import matte, trimap

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return import_script("matting", "benchmarks")


def disc(height: int, width: int, softness: float) -> np.ndarray:
    """The map of a round object in the middle, uint8 [height, width]; its edge is about `softness` pixels wide."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2) - min(height, width) / 3
    return (255 / (1 + np.exp(np.clip(4 * distance / softness, -50, 50)))).astype(np.uint8)


def literal_laplacian(image: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Levin et al. 2008, equation 12, window by window in float64, with windows clipped at the borders."""
    height, width = image.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    colours = (image / 255).reshape(-1, 3)
    laplacian = np.zeros((height * width,) * 2)
    for row in range(height):
        for column in range(width):
            window = index[
                max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1
            ].ravel()
            centred = colours[window] - colours[window].mean(0)
            # Epsilon is added to the variance, as in the guided filter.
            covariance = centred.T @ centred / len(window) + epsilon * np.eye(3)
            affinity = (1 + centred @ np.linalg.solve(covariance, centred.T)) / len(window)
            laplacian[np.ix_(window, window)] += np.eye(len(window)) - affinity
    return laplacian


def test_alpha_is_the_closed_form_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matting, "_RADIUS", 2)
    monkeypatch.setattr(matting, "_EPSILON", 1e-3)
    monkeypatch.setattr(matting, "_BLURRED_PRIOR", 0.0)
    monkeypatch.setattr(matting, "_ITERATIONS", 300)
    monkeypatch.setattr(matting, "_TOLERANCE", 1e-5)
    image = RNG.integers(0, 256, (11, 13, 3), dtype=np.uint8)
    values = RNG.random((11, 13)).astype(np.float32)
    band = RNG.random((11, 13)) < 0.7
    weight = np.full(band.shape, 0.01, np.float32)
    found = matting._solve(image, values, band, weight)
    unknown, prior = band.ravel(), 0.01 * 25
    laplacian = literal_laplacian(image, 2, 1e-3)
    matrix = laplacian[np.ix_(unknown, unknown)] + prior * np.eye(unknown.sum())
    right = prior * values.ravel()[unknown] - laplacian[np.ix_(unknown, ~unknown)] @ values.ravel()[~unknown]
    expected = values.copy()
    expected[band] = np.clip(np.linalg.solve(matrix, right), 0, 1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(("kind", "share"), [("strands", 0.5), ("soft", 0.5), ("hard", 1.0)])
def test_alpha_is_nearer_to_the_truth_than_guided_edges(benchmark: ModuleType, kind: str, share: float) -> None:
    image, alpha, saliency = benchmark.make(kind, 0, 240, 320)
    colours, found = matte(image, saliency)
    assert colours.dtype == found.dtype == np.uint8
    assert colours.shape == image.shape
    guided = benchmark.errors(cutout(image, saliency)[..., 3] / np.float32(255), alpha)
    matted = benchmark.errors(found / np.float32(255), alpha)
    for name in ("sad", "mse", "gradient"):
        assert matted[name] < share * guided[name]


@pytest.mark.parametrize("softness", [2, 8, 20])
def test_the_sure_object_stays_and_far_background_goes(softness: float) -> None:
    """Also where both have the same colours: noise, stripes, one colour."""
    saliency = disc(96, 128, softness)
    stripes = np.tile(np.uint8([0, 0, 255, 255]), (96, 32))[..., None].repeat(3, axis=2)
    noise = RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for image in (noise, stripes, np.full((96, 128, 3), 90, np.uint8)):
        colours, alpha = matte(image, saliency)
        core = cv2.erode((saliency >= 0.95 * 255).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert core.any()
        assert (alpha[core] == 255).all()
        np.testing.assert_array_equal(colours[core], image[core])
        far = cv2.dilate((saliency > 0.02 * 255).astype(np.uint8), np.ones((33, 33), np.uint8)) == 0
        assert (alpha[far] == 0).all()


def test_grey_images_are_solved_as_colour_images_are(benchmark: ModuleType) -> None:
    """Their colours' covariance is singular but for epsilon."""
    image, alpha, saliency = benchmark.make("soft", 0, 240, 320)
    grey = image[..., :1].repeat(3, axis=2)
    tinted = grey.copy()
    tinted[..., 2] = 255 - grey[..., 2]
    found, other = (matte(guide, saliency)[1] for guide in (grey, tinted))
    assert np.abs(found.astype(int) - other).max() <= 8
    assert np.abs(found / 255 - alpha).mean() < np.abs(cutout(grey, saliency)[..., 3] / 255 - alpha).mean()


def test_the_band_is_wide_where_the_map_is_soft() -> None:
    sharp, soft = (trimap(disc(320, 320, softness) / np.float32(255)) for softness in (1, 20))
    for inside, band, _ in (sharp, soft):
        assert not (inside & band).any()
    assert not sharp[2].any()
    assert soft[2].any()
    assert soft[1].sum() > 3 * sharp[1].sum()


def test_large_images_are_matted_at_a_bounded_size(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    image, alpha, saliency = benchmark.make("strands", 1, 240, 320)
    solved = []
    solve = matting._solve
    monkeypatch.setattr(matting, "_solve", lambda image, *rest: solved.append(image.shape) or solve(image, *rest))
    monkeypatch.setattr(matting, "_PIXELS", 240 * 320 // 4)
    found = matte(image, saliency)[1]
    assert solved == [(120, 160, 3)]
    guided = cutout(image, saliency)[..., 3]
    assert np.abs(found / 255 - alpha).mean() < 0.8 * np.abs(guided / 255 - alpha).mean()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (30, 7)])
def test_any_size_and_map(shape: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for level in (0, 255):
        np.testing.assert_array_equal(matte(image, np.full(shape, level, np.uint8))[1], level)
    for saliency in (np.full(shape, 128, np.uint8), RNG.integers(0, 256, shape, dtype=np.uint8)):
        assert matte(image, saliency)[1].shape == shape


def test_a_lower_threshold_keeps_more(benchmark: ModuleType) -> None:
    image, _, saliency = benchmark.make("soft", 0, 120, 160)
    low, middle, high = (matte(image, saliency, threshold)[1].mean() for threshold in (0.2, 0.5, 0.8))
    assert low > middle > high
