"""Matting: estimate the alpha of hair and fur around the object that a map shows.

A trimap is made of the map. In its unknown band, alpha is as linear a function of the colours as possible in every
window (Levin et al.: closed-form matting, TPAMI 2008), by conjugate gradients. The matrix is never built: its product
with alpha is alpha less its guided filter, times the windows' pixels (He, Sun, Tang: fast matting using large kernel
matting Laplacian matrices, CVPR 2010).

Alpha and map are kept near each other, most of all when both are blurred: the network sees no single hair, but it does
see what is wider, such as a part of the background in the object's colours.
"""

import math

import cv2
import numpy as np

from purinet_jax.prediction.cutouts import object_colours
from purinet_jax.prediction.refine import GuidedFilter, linear, upsampled_strips

# The saliency of sure background and of the sure object.
_LOW, _HIGH = 0.02, 0.95
# In 320ths of the longer side: by how much the object shrinks; how far the band reaches outside a sharp edge of the
# map, and outside a soft one, where there may be hair that the map does not show; how wide a soft one is, at least.
_INSIDE, _OUTSIDE, _HAIR, _SOFT = 4, 5, 18, 4
# The weights of the map against the colours, near soft and near sharp edges of the map.
_PRIOR, _SHARP_PRIOR = 3e-4, 0.3
# The weight of the blurred map, and the radius of that blur in 320ths of the longer side.
_BLURRED_PRIOR, _BLUR = 0.3, 5
# Windows are 2 · _RADIUS + 1 pixels wide; the epsilon is added to the variance of colours in [0, 1].
_RADIUS, _EPSILON = 4, 1e-5
# Conjugate gradients end after so many iterations, or when the residual is so small a part of the first one.
_ITERATIONS, _TOLERANCE = 40, 1e-2
# Alpha is computed with at most so many pixels, and upsampled by a guided filter of this radius and epsilon.
_PIXELS = 1 << 19
_UPSAMPLING = 2, 1e-4
# Alpha that is nearer to 0 and 1 than this becomes 0 and 1.
_MARGIN = 0.06


def matte(image: np.ndarray, saliency: np.ndarray, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Estimates the object's colours and alpha, also of hair that the map does not show.

    Args:
      image: uint8 [height, width, 3].
      saliency: the map, uint8 [height, width].
      threshold: the saliency in (0, 1) that is taken for half transparent.

    Returns:
      colours: uint8 [height, width, 3], the object's, without those of the background at soft edges.
      alpha: uint8 [height, width]; 255 where the map is sure of the object, 0 far from it.
    """
    height, width = saliency.shape
    scale = min(1.0, math.sqrt(_PIXELS / saliency.size))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    # The power by which the threshold becomes one half.
    levels = ((np.arange(256) / 255) ** (math.log(0.5) / math.log(threshold))).astype(np.float32)
    prior = cv2.LUT(cv2.resize(saliency, size, interpolation=cv2.INTER_AREA), levels)
    inside, band, hair = trimap(prior)
    weight = np.where(hair, np.float32(_PRIOR), np.float32(_SHARP_PRIOR))
    values = _solve(small, np.where(band, prior, inside), band, weight)
    alpha = np.empty((height, width), np.uint8)
    if scale == 1:
        alpha[:] = _levels(values)
    else:
        coefficients = GuidedFilter(small, *_UPSAMPLING).coefficients(values)
        planes = cv2.merge([*coefficients, inside.astype(np.float32), band.astype(np.float32)])
        for rows, (*fit, inner, unknown) in upsampled_strips(planes, height, width):
            alpha[rows] = _levels(np.where(unknown > 0, linear(fit, image[rows]), inner))
    result = np.empty_like(image)
    for rows, strip in object_colours(image, alpha):
        result[rows] = strip
    return result, alpha


def trimap(saliency: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where a map is sure of the object, and where alpha is unknown.

    Args:
      saliency: float32 [height, width] in [0, 1].

    Returns:
      bool [height, width] each: the sure object; the unknown band around its edge, narrow where the map's edge is sharp
      and wide where it is soft; and what is near a soft edge.
    """
    unit = max(saliency.shape) / 320
    possible, sure = saliency > _LOW, saliency >= _HIGH
    inside = ~_near(~sure, _INSIDE * unit)
    soft = ~_near(~possible | sure, _SOFT / 2 * unit)
    hair = _near(soft, (_SOFT / 2 + _HAIR) * unit)
    return inside, (_near(possible, _OUTSIDE * unit) | hair) & ~inside, hair


def _near(mask: np.ndarray, distance: float) -> np.ndarray:
    """Where a pixel of a mask, bool [height, width], is at most `distance` pixels away."""
    if not mask.any():
        return mask
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= distance


def _levels(alpha: np.ndarray) -> np.ndarray:
    stretched = (alpha - _MARGIN) * (255 / (1 - 2 * _MARGIN)) + 0.5
    return np.clip(stretched, 0, 255).astype(np.uint8)


def _solve(image: np.ndarray, values: np.ndarray, band: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns alpha, float32 [height, width], whose windows are near linear functions of the image's colours.

    Args:
      image: uint8 [height, width, 3].
      values: float32 [height, width]: alpha outside the band; in the band, the map.
      band: bool [height, width], where alpha is unknown.
      weight: float32 [height, width], of the map against the colours.
    """
    if not band.any():
        return values
    left, top, width, height = cv2.boundingRect(band.astype(np.uint8))
    margin = 2 * _RADIUS  # what windows of windows reach
    box = np.s_[max(top - margin, 0) : top + height + margin, max(left - margin, 0) : left + width + margin]
    guided = GuidedFilter(np.ascontiguousarray(image[box]), _RADIUS, _EPSILON, np.float64)
    unknown = band[box].astype(np.float32)
    pixels = (2 * _RADIUS + 1) ** 2
    prior, blurred_prior = weight[box] * np.float32(pixels), np.float32(_BLURRED_PRIOR * pixels)
    window = 2 * round(_BLUR * max(band.shape) / 320) + 1

    def blur(alpha: np.ndarray) -> np.ndarray:
        return cv2.blur(alpha, (window, window), borderType=cv2.BORDER_CONSTANT)

    def to_map(alpha: np.ndarray) -> np.ndarray:
        return prior * alpha + blurred_prior * blur(blur(alpha))

    def product(alpha: np.ndarray) -> np.ndarray:
        return unknown * (guided.pixels * (alpha - guided(alpha)) + to_map(alpha))

    alpha = values[box].astype(np.float32)
    residual = unknown * to_map(alpha) - product(alpha)
    direction = residual
    power = first = float(np.vdot(residual, residual))
    for _ in range(_ITERATIONS):
        if power <= _TOLERANCE**2 * first:
            break
        change = product(direction)
        curvature = float(np.vdot(direction, change))
        if curvature <= 0:  # by rounding
            break
        step = np.float32(power / curvature)
        alpha = alpha + step * direction
        residual = residual - step * change
        power, last = float(np.vdot(residual, residual)), power
        direction = residual + np.float32(power / last) * direction
    result = values.astype(np.float32)
    result[box] = np.clip(alpha, 0, 1)
    return result
