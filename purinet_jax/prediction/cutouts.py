"""Make masks, cut-outs, composites and overlays from an image and its map, in strips to save memory.

At soft edges, colours mix object and background. So that a cut-out has no halo of its old background, the object's own
colours are estimated by blur fusion (Forte: Approximate Fast Foreground Colour Estimation, ICIP 2021).
"""

from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image, ImageOps

from purinet_jax.prediction.refine import upsampled_strips

TINT = (255, 40, 80)
"""The colour that `overlay` marks objects with, RGB."""

NEUTRAL = (128, 128, 128)
"""The colour that the network sees behind transparent parts of an image, RGB."""

# The longer side of the image in which colours are blurred, and the windows of the two blurs, pixels.
_BLURRED_SIDE = 512
_BLURS = (91, 7)
# The standard deviation of a blurred background in the image that it is computed in, and that image's longest side.
_BLURRED_SIGMA = 4
_LARGEST_BLURRED = 2048
# From the threshold to the saliency that is fully transparent or opaque.
_SOFTNESS = 0.35
_STRIP = 1 << 18


def visible(image: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Returns an image uint8 [height, width, 3] on `NEUTRAL`, by its alpha uint8 [height, width]; itself if opaque."""
    if alpha is None:
        return image
    result = np.empty_like(image)
    for rows in strips(*alpha.shape):
        result[rows] = _blend(image[rows], np.array(NEUTRAL, np.float32), alpha[rows, :, None])
    return result


def multiply(saliency: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Returns a map uint8 [height, width] times the image's alpha, of the same type; itself if the image is opaque."""
    return saliency if alpha is None else cv2.multiply(saliency, alpha, scale=1 / 255)


def binary_mask(saliency: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Returns uint8 [height, width]: 255 where the map, of the same type, reaches `threshold` · 255, 0 elsewhere."""
    return np.where(saliency >= threshold * 255, np.uint8(255), np.uint8(0))


def cutout(
    image: np.ndarray, saliency: np.ndarray, alpha: np.ndarray | None = None, threshold: float = 0.5
) -> np.ndarray:
    """Cuts the object out, with a soft edge that has no colours of the background.

    Args:
      image: uint8 [height, width, 3].
      saliency: the map, uint8 [height, width].
      alpha: the image's own, uint8 [height, width], which multiplies the cut-out's.
      threshold: the saliency in (0, 1) that is half transparent.

    Returns:
      uint8 [height, width, 4], RGBA; black where it is fully transparent.
    """
    opacity = _opacity(saliency, threshold)
    shown = multiply(opacity, alpha)
    result = np.empty((*saliency.shape, 4), np.uint8)
    for rows, colours in object_colours(image, opacity):
        result[rows, :, :3] = colours * (shown[rows, :, None] > 0)
        result[rows, :, 3] = shown[rows]
    return result


def _opacity(saliency: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the cut-out's alpha, uint8 [height, width]: a smooth ramp of the map about the threshold."""
    low, high = max(threshold - _SOFTNESS, 0.0), min(threshold + _SOFTNESS, 1.0)
    ramp = np.interp(np.arange(256) / 255, [low, threshold, high], [0, 0.5, 1])
    table = np.rint(255 * ramp * ramp * (3 - 2 * ramp)).astype(np.uint8)
    return cv2.LUT(saliency, table)


def object_colours(image: np.ndarray, opacity: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the object's colours at every pixel, uint8 [rows, width, 3], in strips of rows from the top.

    The colours of object and background are blurred at a small size; the rest of each pixel's colour is added to the
    object's in proportion to its opacity (Forte, equation 4).
    """
    height, width = opacity.shape
    scale = min(1.0, _BLURRED_SIDE / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    colours = cv2.resize(image, small, interpolation=cv2.INTER_AREA).astype(np.float32)
    share = cv2.resize(opacity, small, interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    front = back = colours
    for window in _BLURS:
        front, back = _blur_fusion(colours, front, back, share, window)
    for rows, blurred in upsampled_strips(np.concatenate([front, back], axis=-1), height, width):
        front, back = blurred[:3].transpose(1, 2, 0), blurred[3:].transpose(1, 2, 0)
        share = opacity[rows, :, None] * np.float32(1 / 255)
        rest = image[rows] - share * front - (1 - share) * back
        yield rows, np.clip(front + share * rest + 0.5, 0, 255).astype(np.uint8)


def _blur_fusion(
    colours: np.ndarray, front: np.ndarray, back: np.ndarray, share: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """One pass of blur fusion: averages the colours [rows, columns, 3] of object and background over windows, weighted
    by their shares [rows, columns, 1], and corrects the object's by the image."""

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (window, window)).reshape(*values.shape)

    front = blur(front * share) / (blur(share) + 1e-5)
    back = blur(back * (1 - share)) / (blur(1 - share) + 1e-5)
    front = front + share * (colours - share * front - (1 - share) * back)
    return np.clip(front, 0, 255), back


def composite(rgba: np.ndarray, background: tuple[int, ...] | np.ndarray) -> np.ndarray:
    """Puts a cut-out on a colour or on another image.

    Args:
      rgba: the cut-out, uint8 [height, width, 4].
      background: red, green, blue; or uint8 [rows, columns, 3], scaled to cover the cut-out and cropped to its centre.
        Either may have alpha as its fourth.

    Returns:
      uint8 [height, width, 3]; or [height, width, 4], black where it is fully transparent, if the background has alpha.
    """
    height, width = rgba.shape[:2]
    if isinstance(background, np.ndarray):
        background = fit_background(background, height, width)
    else:
        background = np.broadcast_to(np.array(background, np.float32), (height, width, len(background)))
    channels = background.shape[-1]
    result = np.empty((height, width, channels), np.uint8)
    for rows in strips(height, width):
        front, back = rgba[rows], background[rows]
        if channels == 3:
            result[rows] = _blend(front[..., :3], back, front[..., 3:])
            continue
        above = front[..., 3:].astype(np.float32)
        below = (255 - above) * (back[..., 3:] * np.float32(1 / 255))
        alpha = above + below
        colours = (above * front[..., :3] + below * back[..., :3]) / np.maximum(alpha, np.float32(1))
        result[rows, :, 3:] = alpha + 0.5
        result[rows, :, :3] = (colours + 0.5) * (result[rows, :, 3:] > 0)
    return result


def fit_background(background: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales an image, uint8 [rows, columns, 3 or 4], to cover [height, width], and crops it to its centre."""
    if background.shape[:2] == (height, width):
        return background
    # Pillow resizes premultiplied, so that hidden colours do not spread.
    return np.asarray(ImageOps.fit(Image.fromarray(background), (width, height), Image.Resampling.BICUBIC))


def on_blur(rgba: np.ndarray, image: np.ndarray, alpha: np.ndarray | None, strength: float) -> np.ndarray:
    """Puts a cut-out on its image's background, blurred without the object's colours.

    The blur is that of background colours, weighted by their share of each pixel, divided by that of the weights.

    Args:
      rgba: the cut-out, uint8 [height, width, 4].
      image: uint8 [height, width, 3], which it was cut out of.
      alpha: the image's own, uint8 [height, width]; what it hides is not blurred.
      strength: standard deviation of the blur, as a share of the image's longer side.

    Returns:
      uint8 [height, width, 3].
    """
    height, width = rgba.shape[:2]
    longer = max(height, width)
    # At this size, the standard deviation is `_BLURRED_SIGMA` pixels: enough for the bilinear resizing not to show.
    scale = min(1.0, _BLURRED_SIGMA / (strength * longer), _LARGEST_BLURRED / longer)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))

    def reduced(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values, small, interpolation=cv2.INTER_AREA).astype(np.float32)

    own = np.float32(255) if alpha is None else reduced(alpha)
    share = (own - reduced(np.ascontiguousarray(rgba[..., 3]))) / 255
    # The least of nearby shares, because the object's edge may lie a little outside its cut-out; the fourth power gives
    # mixed colours little weight.
    share = cv2.erode(share, np.ones((3, 3), np.uint8))[..., None].clip(0, 1) ** 4
    colours = reduced(image)
    # Where there is no background nearby, its mean.
    mean = (colours * share + 1e-6 * np.array(NEUTRAL, np.float32)).mean((0, 1)) / (share.mean() + 1e-6)
    sums, weights = (
        cv2.GaussianBlur(values, (0, 0), strength * longer * scale).reshape(*share.shape[:2], -1)
        for values in (colours * share, share)
    )
    blurred = (sums + 1e-4 * mean) / (weights + np.float32(1e-4))
    result = np.empty((height, width, 3), np.uint8)
    for rows, back in upsampled_strips(blurred, height, width):
        front = rgba[rows]
        result[rows] = _blend(front[..., :3], back.transpose(1, 2, 0), front[..., 3:])
    return result


def with_alpha(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns uint8 [height, width, 4] of colours [height, width, 3] and alpha, black where fully transparent."""
    return np.dstack([np.where(alpha[..., None] > 0, colours, 0), alpha])


def _blend(front: np.ndarray, back: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blends colours by an alpha of 256 levels; float32 to be truncated."""
    share = alpha * np.float32(1 / 255)
    return share * front + (1 - share) * back + 0.5


def overlay(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Tints the object and darkens the rest a little: uint8 [height, width, 3] and its map, uint8 [height, width] →
    uint8 [height, width, 3]."""
    result = np.empty_like(image)
    tint = np.array(TINT, np.float32)
    for rows in strips(*saliency.shape):
        share = saliency[rows, :, None] * np.float32(1 / 255)
        result[rows] = image[rows] * (0.7 - 0.15 * share) + 0.45 * share * tint
    return result


def strips(height: int, width: int) -> Iterator[slice]:
    """Yields the rows of an image in strips from the top."""
    step = max(1, _STRIP // width)
    return (slice(start, start + step) for start in range(0, height, step))
