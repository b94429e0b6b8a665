"""Precision, recall, F-measure and E-measure of a map that is cut at a threshold. All of them follow from how many
pixels of object and background are found, so that all 256 thresholds need one histogram.
"""

import numpy as np

_EPSILON = np.finfo(np.float64).eps
_BETA_SQUARED = 0.3


def found_by_threshold(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts the pixels of floor(255·level) ≥ t, for t = 0 … 255.

    Args:
      levels: float64 [levels] in [0, 1].
      counts: pixels of each level, int [levels].

    Returns:
      float64 [256], whole numbers.
    """
    histogram = np.bincount((levels * 255).astype(np.intp), weights=counts, minlength=256)
    return np.cumsum(histogram[::-1])[::-1]


def precision_and_recall(hits: np.ndarray, false_alarms: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision = hits / (hits + false alarms) and recall = hits / object, [thresholds]; 0 where the divisor is 0.

    Args:
      hits: pixels of the object that are found, [thresholds].
      false_alarms: pixels of the background that are found, [thresholds].
      objects: pixels of the object.
    """
    return hits / np.maximum(hits + false_alarms, 1), hits / max(objects, 1)


def f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """F = (1 + β²) PR / (β²P + R), β² = 0.3; 0 where both are 0.

    Achanta, Hemami, Estrada, Süsstrunk: Frequency-tuned Salient Region Detection, CVPR 2009.
    """
    divisor = _BETA_SQUARED * precision + recall
    return (1 + _BETA_SQUARED) * precision * recall / np.where(divisor == 0, 1, divisor)


def e_measure(hits: np.ndarray, false_alarms: np.ndarray, objects: int, area: int) -> np.ndarray:
    """E = Σ over pixels of (1 + 2ab / (a² + b²))² / 4 / (n − 1), a and b the map and the mask less their means.

    Both are binary, so that the sum has four different terms. Without an object, E is the share of the pixels that are
    not found; without background, of those that are. Because the published code divides by n − 1, a perfect map has
    n / (n − 1). A single pixel is divided by 1.

    Fan, Gong, Cao, Ren, Cheng, Borji: Enhanced-alignment Measure for Binary Foreground Map Evaluation, IJCAI 2018.

    Args:
      hits: pixels of the object that are found, [thresholds].
      false_alarms: pixels of the background that are found, [thresholds].
      objects: pixels of the object.
      area: n, all pixels.
    """
    found = hits + false_alarms
    divisor = max(area - 1, 1)
    if objects == 0:
        return (area - found) / divisor
    if objects == area:
        return found / divisor
    a, b = found / area, objects / area
    misses = objects - hits
    return (
        hits * _alignment(1 - a, 1 - b)
        + false_alarms * _alignment(1 - a, -b)
        + misses * _alignment(-a, 1 - b)
        + (area - found - misses) * _alignment(-a, -b)
    ) / divisor


def _alignment(a: np.ndarray, b: float) -> np.ndarray:
    return (1 + 2 * a * b / (a * a + b * b + _EPSILON)) ** 2 / 4
