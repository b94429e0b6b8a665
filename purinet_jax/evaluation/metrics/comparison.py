"""Where the two protocols differ: the values a map is stretched to, the mask's pixels that are object, and how a map of
another size is resized. Most measures need no more than the resulting counts of pixels of each level.
"""

from typing import Literal, NamedTuple

import cv2
import numpy as np

from purinet_jax.errors import InputError
from purinet_jax.evaluation.metrics.structure import split_at_centre

Protocol = Literal["purnet", "pysod"]

# The kinds of pixels in a mask. Only "purnet" has soft ones, which are neither its brightest nor its darkest.
BACKGROUND, OBJECT, SOFT = range(3)


class Comparison(NamedTuple):
    """A map and its mask by a protocol's rules.

    Attributes:
      values: the map stretched, float64 [height, width] in [0, 1].
      objects: bool [height, width].
      levels: the values that a pixel may have, float64 [levels] in [0, 1], rising.
      counts: pixels by quadrant around the object's centre (upper left, upper right, lower left, lower right), kind
        (`BACKGROUND`, `OBJECT`, `SOFT`) and level, int64 [4, 3, levels].
      protocol: the protocol.
    """

    values: np.ndarray
    objects: np.ndarray
    levels: np.ndarray
    counts: np.ndarray
    protocol: Protocol


def compare(saliency: np.ndarray, mask: np.ndarray, protocol: Protocol, name: str = "map") -> Comparison:
    """Applies a protocol's rules to a map and its mask.

    Args:
      saliency: uint8 or floating [height, width], of any finite range.
      mask: bool [height, width]; or uint8, grey from 0 to 255. One of zeros and ones alone is 0 and 255.
      protocol: "purnet" or "pysod" (see the package).
      name: the map's name in errors.

    Raises:
      InputError: another dtype or number of axes, no pixels, NaN or infinity, a constant map of floats outside [0, 1],
        or sizes that differ where the protocol does not resize.
    """
    if mask.dtype not in (np.bool_, np.uint8) or mask.ndim != 2 or mask.size == 0:
        raise InputError(f"{name}: a mask must be bool or uint8 [height, width], not {mask.dtype} {mask.shape}")
    if not (saliency.dtype == np.uint8 or np.issubdtype(saliency.dtype, np.floating)) or saliency.ndim != 2:
        raise InputError(f"{name}: must be uint8 or floating [height, width], not {saliency.dtype} {saliency.shape}")
    if saliency.size == 0 or (protocol == "pysod" and saliency.shape != mask.shape):
        raise InputError(
            f"{name}: has {saliency.shape[1]}×{saliency.shape[0]} pixels, but its mask {mask.shape[1]}×{mask.shape[0]}"
        )
    levels, codes = _levels(saliency, protocol, name)
    if codes.shape != mask.shape:
        codes = _nearest_pixels(codes, *mask.shape)
    objects, soft = _cut(mask, protocol)
    kinds = objects.view(np.uint8) if soft is None else objects + np.uint8(SOFT) * soft
    values = cv2.LUT(codes, levels) if codes.dtype == np.uint8 else levels[codes]
    return Comparison(values, objects, levels, _count(codes, kinds, len(levels), objects), protocol)


def _levels(saliency: np.ndarray, protocol: Protocol, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A map's values stretched to [0, 1], float64 [levels], and each pixel's index into them.

    The order of the operations is each protocol's own: a threshold that equals a value depends on the last bit.
    """
    low, high = float(saliency.min()), float(saliency.max())
    if not np.isfinite(high - low):
        raise InputError(f"{name}: holds NaN, infinity or too wide a range")
    if saliency.dtype == np.uint8:
        levels, codes = np.arange(256.0), np.ascontiguousarray(saliency)
        if protocol == "pysod" or low == high:
            levels, low, high = levels / 255, low / 255, high / 255
    else:
        levels, codes = np.unique(saliency.astype(np.float64), return_inverse=True)
        codes = codes.reshape(saliency.shape)
    if low < high:
        levels = (levels - low) / (high - low)
    elif not 0 <= low <= 1:
        raise InputError(f"{name}: is {low:g} everywhere, which is neither uint8 nor in [0, 1]")
    return np.clip(levels, 0, 1), codes


def _nearest_pixels(codes: np.ndarray, height: int, width: int) -> np.ndarray:
    """`codes` resized to [height, width] like MATLAB's and Octave's imresize(…, 'nearest'): each pixel has the value of
    the one that its centre lies in."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), codes.shape, strict=True)
    )
    return codes[rows[:, None], columns]


def _cut(mask: np.ndarray, protocol: Protocol) -> tuple[np.ndarray, np.ndarray | None]:
    """The object's pixels, bool [height, width], and those neither of it nor of the background, if there are any."""
    if mask.dtype == np.bool_:
        return np.ascontiguousarray(mask), None
    low, high = int(mask.min()), int(mask.max())
    if high <= 1:
        return np.equal(mask, 1, order="C"), None
    if protocol == "pysod":
        return np.greater(mask, 128, order="C"), None
    objects = np.equal(mask, high, order="C")
    return objects, (mask > low) & ~objects if low < high else None


def _count(codes: np.ndarray, kinds: np.ndarray, levels: int, objects: np.ndarray) -> np.ndarray:
    """`Comparison.counts`."""
    row, column = split_at_centre(objects)
    dtype = np.min_scalar_type(3 * levels)
    numbers = kinds * dtype.type(levels) + codes.astype(dtype)
    quadrants = (numbers[:row, :column], numbers[:row, column:], numbers[row:, :column], numbers[row:, column:])
    counts = [np.bincount(quadrant.ravel(), minlength=3 * levels) for quadrant in quadrants]
    return np.stack(counts).reshape(4, 3, levels)
