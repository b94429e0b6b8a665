"""Panels: the positions and colours of their images."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from purinet_jax.network.model import Maps
from purinet_jax.network.panels import attention_panel, panel, tile

HEIGHT, WIDTH = 4, 6


def logit_of(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def constant(*values: float) -> tuple[Any, ...]:
    """A level-1 map with one value per image, and a coarser level, which panels do not show."""
    levels = np.broadcast_to(np.array(values, np.float32)[:, None, None, None], (len(values), HEIGHT, WIDTH, 1))
    return jnp.asarray(levels), jnp.full((len(values), HEIGHT, WIDTH, 1), 50.0)


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    mask = np.zeros((2, HEIGHT, WIDTH, 1), np.uint8)
    mask[1] = 1
    superpixels = np.zeros((2, HEIGHT, WIDTH), np.int32)
    superpixels[:, :, 3:] = 1
    image = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3)).astype(np.uint8)
    return {"image": image, "mask": mask, "superpixels": superpixels}


@pytest.fixture
def maps() -> Maps:
    return Maps(
        constant(logit_of(0.2), logit_of(0.8)),
        constant(logit_of(0.4), logit_of(0.6)),
        constant(logit_of(0.3), logit_of(0.7)),
        constant(np.arctanh(0.6), np.arctanh(-0.6)),
    )


def cell(image: np.ndarray, row: int, column: int) -> np.ndarray:
    return image[row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH].astype(int)


def test_panel_shows_image_mask_and_level_one_maps_in_order(batch: dict[str, np.ndarray], maps: Maps) -> None:
    image = panel(batch, maps)
    assert image.dtype == np.uint8
    assert image.shape == (2 * HEIGHT, 7 * WIDTH, 3)
    for row in range(2):
        np.testing.assert_array_equal(cell(image, row, 0), batch["image"][row])
        np.testing.assert_array_equal(cell(image, row, 1), 255 * row)
        for column, values in ((2, (0.2, 0.8)), (3, (0.2, 0.8)), (4, (0.4, 0.6)), (5, (0.3, 0.7))):
            np.testing.assert_allclose(cell(image, row, column), 255 * values[row], atol=1)


def test_panel_shows_missed_object_in_red_and_taken_background_in_blue(
    batch: dict[str, np.ndarray], maps: Maps
) -> None:
    image = panel(batch, maps)
    np.testing.assert_allclose(cell(image, 0, 6).mean((0, 1)), (255, 102, 102), atol=1)
    np.testing.assert_allclose(cell(image, 1, 6).mean((0, 1)), (102, 102, 255), atol=1)


def test_panel_shows_no_error_in_white(batch: dict[str, np.ndarray], maps: Maps) -> None:
    image = panel(batch, maps._replace(error=constant(0, 0)))
    assert (cell(image, 0, 6) == 255).all()


def test_panel_flattens_the_saliency_map_over_each_superpixel(batch: dict[str, np.ndarray]) -> None:
    probability = np.full((2, HEIGHT, WIDTH, 1), 0.5)
    probability[0, 0, :3] = 0.9
    logits = np.log(probability / (1 - probability)).astype(np.float32)
    image = panel(batch, Maps((jnp.asarray(logits),)))
    assert image.shape == (2 * HEIGHT, 4 * WIDTH, 3)
    np.testing.assert_allclose(cell(image, 0, 2)[0, :3], 0.9 * 255, atol=1)
    np.testing.assert_allclose(cell(image, 0, 3)[:, :3], 0.6 * 255, atol=1)
    np.testing.assert_allclose(cell(image, 0, 3)[:, 3:], 0.5 * 255, atol=1)


def test_panel_without_superpixels_and_attention_has_three_columns(batch: dict[str, np.ndarray]) -> None:
    del batch["superpixels"]
    image = panel(batch, Maps(constant(0.0, 50.0)))
    assert image.shape == (2 * HEIGHT, 3 * WIDTH, 3)
    np.testing.assert_allclose(cell(image, 0, 2), 127, atol=1)
    np.testing.assert_allclose(cell(image, 1, 2), 255, atol=1)


def test_panel_without_mask(batch: dict[str, np.ndarray], maps: Maps) -> None:
    complete = panel(batch, maps)
    del batch["mask"]
    np.testing.assert_array_equal(panel(batch, maps), np.delete(complete, slice(WIDTH, 2 * WIDTH), axis=1))


def test_attention_panel_has_the_images_proportions_and_is_never_enlarged() -> None:
    square = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    square[:, :16] //= 8
    levels = [np.where(square[None, ..., :1] > 31, np.float32(5 + k), np.float32(-5 - k)) for k in range(3)]
    maps = Maps(*[(jnp.asarray(level),) for level in levels], (jnp.zeros((1, 32, 32, 1)),))
    for shape, expected in (
        ((200, 400, 3), (16, 32)),
        ((400, 200), (32, 16)),
        ((10, 20), (10, 20)),
        ((999, 1), (32, 1)),
    ):
        image = attention_panel(square, maps, shape)
        assert image.shape == (expected[0], 5 * expected[1], 3)
    image = attention_panel(square, maps, (32, 32))
    np.testing.assert_array_equal(image[:, :32], square)
    for column in (1, 2, 3):
        assert image[:, 32 * column : 32 * column + 16].max() < 3
    assert (image[:, 4 * 32 :] == 255).all()


def test_attention_panel_leaves_out_what_the_network_lacks() -> None:
    zeros = (jnp.zeros((1, 4, 4, 1)),)
    for maps, panels in ((Maps(zeros, zeros), 3), (Maps(zeros, (), zeros, zeros), 4)):
        assert attention_panel(np.zeros((4, 4, 3), np.uint8), maps, (4, 4)).shape == (4, panels * 4, 3)


def test_attention_panel_gives_the_largest_error_the_full_colour() -> None:
    error = np.zeros((1, 4, 4, 1), np.float32)
    error[0, 0, 0], error[0, 3, 3] = np.arctanh(0.02), np.arctanh(-0.01)
    zeros = jnp.zeros((1, 4, 4, 1))
    maps = Maps((zeros,), (zeros,), (zeros,), (jnp.asarray(error),))
    shown = attention_panel(np.zeros((4, 4, 3), np.uint8), maps, (4, 4))[:, 16:]
    np.testing.assert_allclose(shown[0, 0], [255, 0, 0], atol=1)  # missed object, red
    np.testing.assert_allclose(shown[3, 3], [127, 127, 255], atol=1)  # half as much background taken, blue
    assert (shown[1:3] == 255).all()


def test_tile_puts_columns_next_to_and_rows_below_each_other() -> None:
    columns = [np.full((3, 2, 5, 3), 10 * column, np.uint8) for column in range(4)]
    for column in columns:
        column += np.arange(3, dtype=np.uint8)[:, None, None, None]
    image = tile(columns)
    assert image.shape == (6, 20, 3)
    expected = np.add.outer(np.repeat(np.arange(3), 2), np.repeat(10 * np.arange(4), 5))
    np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=-1))
