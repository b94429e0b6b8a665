"""Augmentation as plain functions on NumPy arrays, applied alike to image, mask and superpixels.

The released code's (resizing to a square, mirroring, rotating by a few degrees) and, for better recipes, random crops
and colour jitter. Images stay uint8; the device normalises them.
"""

import math
from typing import Any

import cv2
import numpy as np
from PIL import Image

# The longest side of labels that OpenCV resizes correctly, pixels; beyond it, it reads outside the array.
_LONGEST_SIDE = 2**15 - 2


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image as the released code does, by Pillow's bilinear filter.

    It aligns pixel centres and smooths images that shrink. OpenCV's filter does not smooth, which changes the
    network's predictions by up to 22 of 255.

    uint8 [rows, columns, channels] or [rows, columns] → [height, width, channels] or [height, width].
    """
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a mask or superpixels, uint8 or int32 [rows, columns], to [height, width].

    Each pixel gets the label nearest to its centre.
    """
    if max(labels.shape) > _LONGEST_SIDE:
        rows, columns = (
            np.floor((np.arange(new) + 0.5) * old / new).astype(int)
            for new, old in zip((height, width), labels.shape, strict=True)
        )
        return labels[np.ix_(rows, columns)]
    # INTER_NEAREST samples at a pixel's corner and would shift labels by half a pixel against the image.
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def sampling(height: int, width: int, size: int, mirrored: bool, degrees: float) -> np.ndarray:
    """Returns the affine map from a rotated, possibly mirrored square to the image that is resized to it.

    Args:
      height: of the image, pixels.
      width: of the image, pixels.
      size: side of the square, pixels.
      mirrored: whether the square is mirrored left to right before it is rotated.
      degrees: the angle it is rotated by about its centre, counter-clockwise.

    Returns:
      float64 [2, 3]: a pixel (column, row, 1) of the square → a pixel (column, row) of the image.
    """
    middle = (size - 1) / 2
    turn_back = np.vstack([cv2.getRotationMatrix2D((middle, middle), -degrees, 1.0), [0, 0, 1]])
    x, y = width / size, height / size
    mirror, start = (-1, size - 0.5) if mirrored else (1, 0.5)
    resize = np.array([[mirror * x, 0, start * x - 0.5], [0, y, 0.5 * y - 0.5]])
    return resize @ turn_back


def sample_image(image: np.ndarray, matrix: np.ndarray, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Samples a square from an image bilinearly, with zeros outside of it; see `sampling`.

    uint8 [height, width, channels] → uint8 [size, size, channels], written to `out` if given.
    """
    return cv2.warpAffine(image, matrix, (size, size), dst=out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def sample_labels(labels: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Samples a square from a mask or superpixels, each pixel the nearest label; see `sampling`.

    uint8 or int32 [height, width] → [size, size], of the same dtype. Pixels from outside are 0: background in a mask,
    region 0 in superpixels.
    """
    # OpenCV rounds ties differently for bytes and for wider integers, but mask and superpixels must agree; 16 bits are
    # sampled twice as fast as 32.
    small = labels.dtype == np.uint8 or labels.max() < 2**15
    wide: np.ndarray[Any, Any] = labels.astype(np.int16 if small else np.int32, copy=False)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(wide, matrix, (size, size), flags=flags).astype(labels.dtype)


def random_crop(height: int, width: int, least: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """Draws the rows and columns that a random resized crop keeps (Szegedy et al. 2015).

    Args:
      height: of the image, pixels.
      width: of the image, pixels.
      least: the part's share of the area is uniform between this and 1; its aspect ratio, relative to the
        image's, is log-uniform between 3/4 and 4/3, or the nearest that fits.
      generator: draws four numbers.
    """
    area, ratio, top, left = generator.random(4)
    side = math.sqrt(least + (1 - least) * area)
    stretch = min(max((4 / 3) ** (ratio - 0.5), side), 1 / side)  # of the height; the width shrinks by as much
    rows = min(max(round(height * side * stretch), 1), height)
    columns = min(max(round(width * side / stretch), 1), width)
    first_row, first_column = int(top * (height - rows + 1)), int(left * (width - columns + 1))
    return slice(first_row, first_row + rows), slice(first_column, first_column + columns)


def jitter_colours(image: np.ndarray, most: float, generator: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast and saturation of an image, uint8 [height, width, 3], in this order.

    Each by a random factor, uniform between 1 − most and 1 + most; `most` is 0 to 1. Draws three numbers.
    """
    brightness, contrast, saturation = 1 + most * generator.uniform(-1, 1, 3)
    # Brightness and contrast (about the mean grey) are one linear function of the value.
    middle = brightness * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()
    table = contrast * brightness * np.arange(256) + (1 - contrast) * middle
    image = cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)


def augment(
    image: np.ndarray,
    mask: np.ndarray,
    superpixels: np.ndarray | None,
    *,
    size: int,
    generator: np.random.Generator,
    flip: float = 0.5,
    rotate: float = 10.0,
    crop: float = 1.0,
    jitter: float = 0.0,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Crops, resizes, mirrors and rotates the parts of one example alike, and jitters the image's colours.

    Args:
      image: uint8 [height, width, 3].
      mask: uint8 [height, width], 0 or 1.
      superpixels: int32 [height, width], or None.
      size: side of the result, pixels.
      generator: draws two numbers for mirroring and angle, then those of a crop and of a jitter.
      flip: probability of mirroring left to right, 0 to 1.
      rotate: the angle is uniform between minus and plus this many degrees.
      crop: the least share of the area that a random crop keeps; 1 keeps all.
      jitter: the most that brightness, contrast and saturation change; 0 changes nothing.
      out: uint8 [size, size, 3] to write the image to (a part of a batch: new memory takes as long as the sampling);
        a new array if not given.

    Returns:
      Image uint8 [size, size, 3], mask uint8 [size, size], superpixels int32 [size, size] or None.
    """
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    mirrored = generator.random() < flip
    degrees = generator.uniform(-1.0, 1.0) * rotate
    parts = [part for part in (mask, superpixels) if part is not None]
    if crop < 1:
        rows, columns = random_crop(mask.shape[0], mask.shape[1], crop, generator)
        image, *parts = (part[rows, columns] for part in (image, *parts))
    if jitter > 0:
        image = jitter_colours(np.ascontiguousarray(image), jitter, generator)
    if degrees == 0:
        step = -1 if mirrored else 1
        out[...] = resize_image(image, size, size)[:, ::step]
        parts = [np.ascontiguousarray(resize_labels(part, size, size)[:, ::step]) for part in parts]
    else:
        # All parts are sampled once; only an image that shrinks is smoothed first.
        if max(parts[0].shape) > _LONGEST_SIDE:
            parts = [resize_labels(part, size, size) for part in parts]
        matrix = sampling(parts[0].shape[0], parts[0].shape[1], size, mirrored, degrees)
        parts = [sample_labels(part, matrix, size) for part in parts]
        if max(image.shape[:2]) > size:
            image = resize_image(image, size, size)
            matrix = sampling(size, size, size, mirrored, degrees)
        sample_image(image, matrix, size, out)
    return out, parts[0], (parts[1] if superpixels is not None else None)
