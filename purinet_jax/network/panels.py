"""Panels of pictures for people to look at: images beside their masks and maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np

from purinet_jax.network.model import Maps


def panel(batch: Mapping[str, np.ndarray], maps: Maps, full_error: float = 1.0) -> np.ndarray:
    """One row per image: image, mask if it is given, and the level-1 maps that there are.

    In this order: saliency, its mean over each superpixel (what the structural loss sees), promotion, rectification,
    and the signed error as red (object missed) and blue (background taken).

    Args:
      batch: `image` uint8 [batch, height, width, 3] and, optionally, `mask` [batch, height, width, 1] of 0 and 1 and
        `superpixels` [batch, height, width].
      maps: what the network predicts for these images.
      full_error: the error in (0, 1] that has the full colour.

    Returns:
      uint8 [rows · height, columns · width, 3].
    """
    columns = [np.asarray(batch["image"])]
    if "mask" in batch:
        columns.append(grey_colours(batch["mask"]))
    saliency = np.asarray(jax.nn.sigmoid(maps.saliency[0]))
    columns.append(grey_colours(saliency))
    if "superpixels" in batch:
        columns.append(
            grey_colours(np.stack([_flatten_regions(*x) for x in zip(saliency, batch["superpixels"], strict=True)]))
        )
    if maps.promotion:
        columns.append(grey_colours(jax.nn.sigmoid(maps.promotion[0])))
    if maps.rectification:
        columns.append(grey_colours(jax.nn.sigmoid(maps.rectification[0])))
        columns.append(signed_colours(np.clip(np.tanh(np.asarray(maps.error[0])) / full_error, -1, 1)))
    return tile(columns)


def attention_panel(square: np.ndarray, maps: Maps, shape: Sequence[int]) -> np.ndarray:
    """`panel` of one image in its own proportions: image, saliency, promotion, rectification and error side by side,
    as far as the network has them. A trained network expects errors of a few hundredths: the largest has the full
    colour.

    Args:
      square: uint8 [size, size, 3], the image as the network saw it.
      maps: what the network predicts for it at the finest level, each [1, size, size, 1].
      shape: height and width of the image (and more), pixels.

    Returns:
      uint8 [rows, panels · columns, 3]: the image fitted into the square, never enlarged.
    """
    scale = min(1.0, len(square) / max(shape[:2]))
    size = (max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale)))

    def fit(picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)

    fitted: Any = [tuple(fit(np.asarray(x)[0, ..., 0])[None, ..., None] for x in levels) for levels in maps]
    shown = Maps(*fitted)
    largest = max((float(np.abs(np.tanh(error)).max()) for error in shown.error), default=1.0)
    return panel({"image": fit(square)[None]}, shown, max(largest, 1e-3))


def tile(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns of pictures, each uint8 [rows, height, width, 3] → one picture [rows · height, columns · width, 3]."""
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


def _flatten_regions(saliency: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """[height, width, 1], the mean of `saliency` over each of the labels `regions` [height, width]."""
    sums = np.bincount(regions.ravel(), np.asarray(saliency).ravel())
    means = sums / np.maximum(np.bincount(regions.ravel()), 1)
    return means[regions][..., None].astype(np.float32)
