"""Masks, cut-outs without a halo, composites, blurred backgrounds and overlays."""

import statistics

import cv2
import numpy as np
import pytest
from PIL import Image

from purinet_jax.prediction import cutouts
from purinet_jax.prediction.cutouts import NEUTRAL, binary_mask, composite, cutout, on_blur, overlay, visible

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
RAMP = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 128 / 255])
def test_masks_are_cut_at_the_threshold(threshold: float) -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    mask = binary_mask(levels, threshold)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, 255 * (levels / 255 >= threshold))


def test_alpha_rises_with_the_map_and_is_half_at_the_threshold() -> None:
    for level in (13, 77, 128, 179, 230):
        saliency = RAMP.copy()
        saliency[1] = level
        alpha, half = cutout(IMAGE, saliency, threshold=level / 255)[:2, :, 3].astype(int)
        assert (np.diff(alpha) >= 0).all()
        assert alpha[0] == 0
        assert alpha[-1] == 255
        assert set(half) == {128}


def test_alpha_of_the_image_multiplies() -> None:
    own = RNG.integers(0, 256, IMAGE.shape[:2], dtype=np.uint8)
    alpha = cutout(IMAGE, RAMP)[..., 3]
    found = cutout(IMAGE, RAMP, own)[..., 3]
    np.testing.assert_allclose(found, alpha * (own / 255), atol=0.51)


def test_nothing_and_everything() -> None:
    assert not cutout(IMAGE, np.zeros_like(RAMP)).any()
    np.testing.assert_array_equal(cutout(IMAGE, np.full_like(RAMP, 255)), np.dstack([IMAGE, np.full_like(RAMP, 255)]))
    one = cutout(IMAGE[:1, :1], RAMP[:1, -1:])
    np.testing.assert_array_equal(one, [[[*IMAGE[0, 0], 255]]])


def test_the_halo_is_gone() -> None:
    """A red disc blended over green: the cut-out's soft edge is red, and on blue it looks as if drawn there."""
    rows, columns = np.mgrid[:200, :260]
    disc = ((rows - 100) ** 2 + (columns - 120) ** 2 < 60**2).astype(np.float32)
    share = cv2.GaussianBlur(disc, (0, 0), 3)[..., None]
    red, green, blue = np.float32([200, 30, 30]), np.float32([20, 180, 40]), (10, 20, 200)
    image = np.rint(share * red + (1 - share) * green).astype(np.uint8)
    # The map whose ramp gives the true share.
    levels = np.arange(256, dtype=np.uint8)[None]
    alphas = cutout(np.zeros((1, 256, 3), np.uint8), levels)[0, :, 3]
    saliency = np.interp(share[..., 0] * 255, alphas, levels[0]).astype(np.uint8)
    rgba = cutout(image, saliency)
    edge = (rgba[..., 3] > 40) & (rgba[..., 3] < 215)
    assert edge.sum() > 500
    naive = np.abs(image[edge].astype(int) - red).mean()
    assert np.abs(rgba[edge, :3] - red).mean() < naive / 5
    expected = share * red + (1 - share) * np.float32(blue)
    assert np.abs(composite(rgba, blue) - expected)[edge].mean() < 6


def test_strips_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    background = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    at_once = [cutout(IMAGE, RAMP), overlay(IMAGE, RAMP), composite(cutout(IMAGE, RAMP), background)]
    monkeypatch.setattr(cutouts, "_STRIP", 1)
    monkeypatch.setattr("purinet_jax.prediction.refine._STRIP", 1)
    parts = [cutout(IMAGE, RAMP), overlay(IMAGE, RAMP), composite(cutout(IMAGE, RAMP), background)]
    for one, other in zip(at_once, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_composites_on_colours_and_images() -> None:
    rgba = np.dstack([IMAGE, RAMP])
    share = RAMP[..., None] / 255
    expected = share * IMAGE + (1 - share) * (255, 0, 7)
    np.testing.assert_allclose(composite(rgba, (255, 0, 7)), expected, atol=0.51)
    background = RNG.integers(0, 256, IMAGE.shape, dtype=np.uint8)
    np.testing.assert_allclose(composite(rgba, background), share * IMAGE + (1 - share) * background, atol=0.51)
    # A wide image covers a narrow cut-out with its middle.
    wide = np.zeros((30, 400, 3), np.uint8)
    wide[:, 180:220] = 90
    assert (composite(np.zeros((30, 40, 4), np.uint8), wide)[:, 2:-2] == 90).all()


def test_composites_on_transparent_backgrounds() -> None:
    rgba = np.dstack([IMAGE, RAMP])
    over = Image.new("RGBA", (40, 30), (128, 255, 0, 128))
    over.alpha_composite(Image.fromarray(rgba))
    found = composite(rgba, (128, 255, 0, 128))
    np.testing.assert_allclose(found, np.asarray(over), atol=1)
    np.testing.assert_array_equal(composite(rgba, (1, 2, 3, 0))[..., 3], RAMP)
    assert not composite(rgba, (1, 2, 3, 0))[RAMP == 0].any()
    background = np.dstack([IMAGE[::-1], RAMP[:, ::-1]])
    over = Image.fromarray(background)
    over.alpha_composite(Image.fromarray(rgba))
    found = composite(rgba, background)
    np.testing.assert_allclose(found[..., 3], np.asarray(over)[..., 3], atol=1)
    np.testing.assert_allclose(found[..., :3], np.asarray(over)[..., :3], atol=2)


@pytest.mark.parametrize("size", [(60, 90), (600, 900)])
def test_a_blurred_background_has_no_light_of_the_object(size: tuple[int, int]) -> None:
    """A white disc with a soft edge on a black and green background."""
    rows, columns = (np.mgrid[: size[0], : size[1]] + 0.5) / size[1]
    disc = np.hypot(rows - 1 / 3, columns - 1 / 2)
    share = np.clip((0.15 - disc) / 0.02 + 0.5, 0, 1)[..., None]
    back = np.where(columns[..., None] < 0.5, 0, (0, 200, 0))
    image = np.rint(share * 255 + (1 - share) * back).astype(np.uint8)
    rgba = np.dstack([np.where(share > 0, 255, 0).repeat(3, 2), np.rint(share * 255)]).astype(np.uint8)
    found = on_blur(rgba, image, None, 0.03)
    outside = disc > 0.165
    assert found[outside][:, [0, 2]].max() <= 2
    # The step from black to green is that of a normal distribution, of 3 % of the longer side.
    steps = found[2, :, 1] / 200
    expected = np.vectorize(statistics.NormalDist(0.5, 0.03).cdf)(columns[0])
    np.testing.assert_allclose(steps, expected, atol=0.03)
    np.testing.assert_array_equal(found[disc < 0.13], 255)


def test_a_blur_respects_alpha_and_extends_to_the_middle_of_the_object() -> None:
    hidden = np.zeros((40, 60), bool)
    hidden[:, 30:] = True
    image = np.where(hidden[..., None], (255, 0, 0), (0, 0, 80)).astype(np.uint8)
    own = np.where(hidden, 0, 255).astype(np.uint8)
    nothing = np.zeros((40, 60, 4), np.uint8)
    found = on_blur(nothing, image, own, 0.02)
    np.testing.assert_allclose(found, np.broadcast_to((0, 0, 80), found.shape), atol=1)
    everything = np.dstack([image, np.full((40, 60), 255, np.uint8)])
    np.testing.assert_array_equal(on_blur(everything, image, None, 0.5), image)
    np.testing.assert_allclose(on_blur(nothing[:1, :1], image[:1, :1], None, 0.01)[0, 0], (0, 0, 80), atol=1)


def test_colours_under_alpha_are_not_visible() -> None:
    assert visible(IMAGE, None) is IMAGE
    expected = Image.new("RGBA", (40, 30), NEUTRAL)
    expected.alpha_composite(Image.fromarray(np.dstack([IMAGE, RAMP])))
    np.testing.assert_allclose(visible(IMAGE, RAMP), np.asarray(expected)[..., :3], atol=1)


def test_overlays_tint_the_object_only() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    found = overlay(image, np.array([[0, 255]], np.uint8)).astype(int)
    np.testing.assert_allclose(found[0, 0], 70, atol=1)
    np.testing.assert_allclose(found[0, 1], 55 + 0.45 * np.array(cutouts.TINT), atol=1)
