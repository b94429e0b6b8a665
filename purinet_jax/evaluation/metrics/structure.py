"""S-measure: the similarity of map and mask over the object and in the four quadrants around its centre.

Fan, Cheng, Liu, Li, Borji: Structure-measure: A New Way to Evaluate Foreground Maps, ICCV 2017.
"""

import cv2
import numpy as np

_EPSILON = np.finfo(np.float64).eps


def split_at_centre(objects: np.ndarray) -> tuple[int, int]:
    """Returns the first row and column of the lower right quadrant, past the object's rounded mean row and column.

    Args:
      objects: bool [height, width]; without an object, the result is 0, 0.
    """
    mass = np.count_nonzero(objects)
    if mass == 0:
        return 0, 0
    by_column, by_row = (
        cv2.reduce(objects.view(np.uint8), axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() for axis in (0, 1)
    )
    row, column = (np.dot(pixels.astype(np.int64), np.arange(len(pixels))) / mass for pixels in (by_row, by_column))
    return round(row) + 1, round(column) + 1


def s_measure(levels: np.ndarray, background: np.ndarray, objects: np.ndarray) -> float:
    """S = max(0, α S_object + (1 − α) S_region), α = 0.5, in [0, 1]; 1 is perfect.

    S_object = Σ over object and background of area · 2x̄ / (x̄² + 1 + σ), x the map in the object, 1 − map outside.
    S_region = Σ over quadrants of area · 4 x̄ȳ σ_xy / ((x̄² + ȳ²)(σ_x² + σ_y²)), x the map and y the mask, where a
    quadrant in which both are constant counts 1. Areas are shares of the image; sample variances have n − 1.

    Without an object, S is 1 − the map's mean; without background, the map's mean.

    Differs from PySODMetrics 1.6.2 in two cases: a quadrant without pixels (the object's centre is in the last row or
    column) is left out of the sum, which is NaN there; and whether a quadrant is constant does not depend on rounding.

    Args:
      levels: the map's values, float64 [levels] in [0, 1].
      background: pixels of the background by quadrant and level, int [4, levels].
      objects: pixels of the object, likewise; the quadrants are those of `split_at_centre`.
    """
    object_area, area = objects.sum(), background.sum() + objects.sum()
    if object_area == 0:
        return float(1 - background.sum(0) @ levels / area)
    if object_area == area:
        return float(objects.sum(0) @ levels / area)
    share = object_area / area
    object_score = share * _homogeneity(objects.sum(0), levels) + (1 - share) * _homogeneity(
        background.sum(0), 1 - levels
    )
    return float(max(0.0, 0.5 * object_score + 0.5 * _region_score(levels, background, objects)))


def _homogeneity(counts: np.ndarray, levels: np.ndarray) -> float:
    """2x̄ / (x̄² + 1 + σ)."""
    pixels = counts.sum()
    mean = counts @ levels / pixels
    deviation = np.sqrt(counts @ np.square(levels - mean) / max(pixels - 1, 1))
    return 2 * mean / (mean**2 + 1 + deviation + _EPSILON)


def _region_score(levels: np.ndarray, background: np.ndarray, objects: np.ndarray) -> float:
    counts = background + objects
    pixels, mass = counts.sum(1), objects.sum(1)
    filled = np.maximum(pixels, 1)
    x, y = counts @ levels / filled, mass / filled
    centred = levels - x[:, None]
    divisor = pixels - 1 + _EPSILON
    variance_x = (counts * np.square(centred)).sum(1) / divisor
    variance_y = pixels * y * (1 - y) / divisor
    # Where the mask is constant, the two terms are equal to the last bit, and their difference is 0.
    covariance = ((objects * centred).sum(1) - y * (counts * centred).sum(1)) / divisor
    scores = 4 * x * y * covariance / ((np.square(x) + np.square(y)) * (variance_x + variance_y) + _EPSILON)
    constant = (np.count_nonzero(counts, axis=1) <= 1) & ((mass == 0) | (mass == pixels))
    return float(np.where(constant, 1.0, scores) @ pixels / pixels.sum())
