"""Panels for visual inspection: images next to their masks and maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np

from purinet_jax.network.model import Maps


def panel(batch: Mapping[str, np.ndarray], maps: Maps, full_error: float = 1.0) -> np.ndarray:
    """One row per image: the image, its mask if given, and its finest maps.

    The maps are saliency, its mean over each superpixel (which the structural loss compares) if superpixels are given,
    promotion, rectification, and the signed error in red (object missed) and blue (background taken).

    Args:
      batch: `image` uint8 [batch, height, width, 3] and, optionally, `mask` [batch, height, width, 1] of 0 and 1 and
        `superpixels` [batch, height, width].
      maps: the network's predictions for these images.
      full_error: the error in (0, 1] that is drawn in full colour.

    Returns:
      uint8 [rows · height, columns · width, 3].
    """
    saliency = np.asarray(jax.nn.sigmoid(maps.saliency[0]))
    columns = [np.asarray(batch["image"])]
    if "mask" in batch:
        columns.append(grey_colours(batch["mask"]))
    columns.append(grey_colours(saliency))
    if "superpixels" in batch:
        means = [_region_means(*pair) for pair in zip(saliency, batch["superpixels"], strict=True)]
        columns.append(grey_colours(np.stack(means)))
    columns += [grey_colours(jax.nn.sigmoid(kind[0])) for kind in (maps.promotion, maps.rectification) if kind]
    if maps.error:
        columns.append(signed_colours(np.clip(np.tanh(np.asarray(maps.error[0])) / full_error, -1, 1)))
    return tile(columns)


def attention_panel(square: np.ndarray, maps: Maps, shape: Sequence[int]) -> np.ndarray:
    """`panel` of one image in its own aspect ratio: image, saliency, promotion, rectification and error side by side.

    Trained networks predict errors of a few hundredths, so the largest error has the full colour.

    Args:
      square: uint8 [size, size, 3], the network's input.
      maps: the network's finest predictions for it, each [1, size, size, 1].
      shape: height and width of the image (and more), pixels.

    Returns:
      uint8 [rows, panels · columns, 3]: the image fitted into the square, never enlarged.
    """
    scale = min(1.0, len(square) / max(shape[:2]))
    size = (max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale)))

    def fit(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    fitted: Any = [tuple(fit(np.asarray(x)[0, ..., 0])[None, ..., None] for x in levels) for levels in maps]
    shown = Maps(*fitted)
    largest = max((float(np.abs(np.tanh(error)).max()) for error in shown.error), default=1.0)
    return panel({"image": fit(square)[None]}, shown, max(largest, 1e-3))


def tile(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns of images, each uint8 [rows, height, width, 3] → one image [rows · height, columns · width, 3]."""
    stacked = np.stack(columns, axis=2)  # [rows, height, columns, width, 3]
    rows, height, count, width, _ = stacked.shape
    return stacked.reshape(rows * height, count * width, 3)


def grey_colours(values: object) -> np.ndarray:
    """[…, height, width, 1] in [0, 1] → uint8 […, height, width, 3]."""
    return np.repeat((np.asarray(values) * 255).astype(np.uint8), 3, axis=-1)


def signed_colours(values: np.ndarray) -> np.ndarray:
    """[…, height, width, 1] in [−1, 1] → uint8 […, height, width, 3]: white at 0, red towards 1, blue towards −1."""
    positive, negative = np.maximum(values, 0), np.maximum(-values, 0)
    colours = np.concatenate([1 - negative, 1 - positive - negative, 1 - positive], axis=-1)
    return (colours * 255).astype(np.uint8)


def _region_means(saliency: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """[height, width, 1], the mean of `saliency` [height, width, 1] over each label of `regions` [height, width]."""
    means = np.bincount(regions.ravel(), saliency.ravel()) / np.maximum(np.bincount(regions.ravel()), 1)
    return means[regions][..., None].astype(np.float32)
