"""S-measure: how alike map and mask are as wholes and in the four parts around the object's centre.

Fan, Cheng, Liu, Li, Borji: Structure-measure: A New Way to Evaluate Foreground Maps, ICCV 2017.
"""

import cv2
import numpy as np

_EPSILON = np.finfo(np.float64).eps


def split_at_centre(objects: np.ndarray) -> tuple[int, int]:
    """The first row and column of the lower right quadrant, behind the object's rounded mean row and column.

    Args:
      objects: bool [height, width]. Without an object, its split has no meaning, and is at 0, 0.
    """
    mass = np.count_nonzero(objects)
    if mass == 0:
        return 0, 0
    by_column, by_row = (
        cv2.reduce(objects.view(np.uint8), axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() for axis in (0, 1)
    )
    row, column = (np.dot(pixels.astype(np.int64), np.arange(len(pixels))) / mass for pixels in (by_row, by_column))
    return round(row) + 1, round(column) + 1


def s_measure(levels: np.ndarray, ground: np.ndarray, objects: np.ndarray) -> float:
    """S = max(0, α S_object + (1 − α) S_region), α = 0.5, in [0, 1]; 1 is perfect.

    S_object = Σ over object and ground of area · 2x̄ / (x̄² + 1 + σ), x the map in the object and 1 − map in the ground.
    S_region = Σ over quadrants of area · 4 x̄ȳ σ_xy / ((x̄² + ȳ²)(σ_x² + σ_y²)), x the map and y the mask, where a
    quadrant in which both are constant counts 1. Areas are parts of the whole; sample variances have n − 1.

    Without an object, S is 1 − the map's mean; without ground, the map's mean.

    Two things are not as in PySODMetrics 1.6.2: a quadrant without pixels (the object's centre is in the last row or
    column) has no part in the sum, where that answers NaN; and whether a quadrant is constant is not left to rounding.

    Args:
      levels: the map's values, float64 [levels] in [0, 1].
      ground: how many pixels of the ground have each, by quadrant: int [4, levels].
      objects: the same of the object, with quadrants as of `split_at_centre`.
    """
    object_area, area = objects.sum(), ground.sum() + objects.sum()
    if object_area == 0:
        return float(1 - ground.sum(0) @ levels / area)
    if object_area == area:
        return float(objects.sum(0) @ levels / area)
    share = object_area / area
    object_score = share * _homogeneity(objects.sum(0), levels) + (1 - share) * _homogeneity(ground.sum(0), 1 - levels)
    return float(max(0.0, 0.5 * object_score + 0.5 * _region_score(levels, ground, objects)))


def _homogeneity(counts: np.ndarray, levels: np.ndarray) -> float:
    """2x̄ / (x̄² + 1 + σ)."""
    number = counts.sum()
    mean = counts @ levels / number
    deviation = np.sqrt(counts @ np.square(levels - mean) / max(number - 1, 1))
    return 2 * mean / (mean**2 + 1 + deviation + _EPSILON)


def _region_score(levels: np.ndarray, ground: np.ndarray, objects: np.ndarray) -> float:
    counts = ground + objects
    number, mass = counts.sum(1), objects.sum(1)
    filled = np.maximum(number, 1)
    x, y = counts @ levels / filled, mass / filled
    centred = levels - x[:, None]
    divisor = number - 1 + _EPSILON
    variance_x = (counts * np.square(centred)).sum(1) / divisor
    variance_y = number * y * (1 - y) / divisor
    # Where the mask is constant, the two terms are the same number, and their difference is 0.
    covariance = ((objects * centred).sum(1) - y * (counts * centred).sum(1)) / divisor
    scores = 4 * x * y * covariance / ((np.square(x) + np.square(y)) * (variance_x + variance_y) + _EPSILON)
    constant = (np.count_nonzero(counts, axis=1) <= 1) & ((mass == 0) | (mass == number))
    return float(np.where(constant, 1.0, scores) @ number / number.sum())
