"""Weighted F-measure, the most expensive of the measures, because it depends on where the errors are.

Margolin, Zelnik-Manor, Tal: How to Evaluate Foreground Maps?, CVPR 2014.
"""

import math

import cv2
import numpy as np

_EPSILON = np.finfo(np.float64).eps

# Errors are averaged over 7 × 7 pixels with a Gaussian of σ = 5.
_REACH = 3
_GAUSSIAN = np.exp(-np.square(np.arange(-_REACH, _REACH + 1)) / (2 * 5**2))
_GAUSSIAN /= _GAUSSIAN.sum()

# A background pixel within that reach of the object is at most this far from it, squared: the window's corner.
_FARTHEST = 2 * _REACH**2
# The nearest pixel of the object may lie outside the window of a pixel with one in its corner: at (4, 1), say.
_MARGIN = 4

# 2 − exp(ln(0.5) / 5 · d) by d²; 0 in the object, where d is 0. From this distance on the weight is 2 to the last bit.
_FARTHEST_WEIGHTED = 300
_WEIGHTS = 2 - np.exp(math.log(0.5) / 5 * np.sqrt(np.arange(_FARTHEST_WEIGHTED**2 + 1)))
_WEIGHTS[0] = 0


def weighted_f(values: np.ndarray, objects: np.ndarray) -> float:
    """F_w = 2 P_w R_w / (P_w + R_w) (β = 1), in [0, 1]; 1 is perfect, and a mask without an object has 0.

    With errors E = |map − mask|: an error in the object counts no more than the mean of the errors around it
    (a Gaussian, 7 × 7, σ = 5), in which a background pixel has the error of the nearest pixel of the object; an
    error in the background has the weight 2 − exp(ln(0.5) / 5 · d), d its distance from the object in pixels. With
    these weights, TP_w = object − Σ in the object, FP_w = Σ in the background, R_w = TP_w / object and
    P_w = TP_w / (TP_w + FP_w).

    Of pixels that are equally near, the leftmost counts, of those the uppermost, as in SciPy. MATLAB's choice is not
    documented; another one changes F_w by about 1e-4.

    Args:
      values: float64 [height, width] in [0, 1].
      objects: bool [height, width].
    """
    area = np.count_nonzero(objects)
    if area == 0:
        return 0.0
    # Only squares are used, which are integers: the last bit of a distance depends on the mask's address in memory.
    background = np.logical_not(objects).view(np.uint8)
    distances = cv2.distanceTransform(background, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    lost = _object_error(values, objects, distances)
    true, false = area - lost, _background_error(values, distances)
    recall = 1 - lost / area
    precision = true / (true + false + _EPSILON)
    return float(2 * precision * recall / (precision + recall + _EPSILON))


def _object_error(values: np.ndarray, objects: np.ndarray, distances: np.ndarray) -> float:
    """Sum of the weighted errors in the object; only it and its surroundings are read."""
    left, top, width, height = cv2.boundingRect(objects.view(np.uint8))
    rows = slice(max(top - _REACH, 0), top + height + _REACH)
    columns = slice(max(left - _REACH, 0), left + width + _REACH)
    inside = _with_margin(objects[rows, columns].view(np.uint8))
    # Squares saturate at 255, which is too far to count.
    squares = _with_margin(cv2.multiply(distances[rows, columns], distances[rows, columns], dtype=cv2.CV_8U))
    errors = np.zeros(inside.shape)
    np.subtract(1, values[rows, columns], out=errors[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
    errors *= inside
    near = np.flatnonzero((squares > 0) & (squares <= _FARTHEST))
    errors.ravel()[near] = errors.ravel()[_nearest_in_object(near, squares.ravel()[near], inside)]
    # In place here and below, because allocating memory takes longer than the arithmetic.
    weighted = cv2.sepFilter2D(errors, cv2.CV_64F, _GAUSSIAN, _GAUSSIAN)
    np.minimum(weighted, errors, out=weighted)
    np.multiply(weighted, inside, out=weighted)
    return float(weighted.sum())


def _background_error(values: np.ndarray, distances: np.ndarray) -> float:
    """Sum of the weighted errors in the background."""
    near = np.minimum(distances, _FARTHEST_WEIGHTED)
    weighted = _WEIGHTS.take(cv2.multiply(near, near, dtype=cv2.CV_32S))
    weighted *= values
    return float(weighted.sum())


def _with_margin(array: np.ndarray) -> np.ndarray:
    """`array` with `_MARGIN` zeros on each side."""
    return cv2.copyMakeBorder(array, _MARGIN, _MARGIN, _MARGIN, _MARGIN, cv2.BORDER_CONSTANT)


def _nearest_in_object(near: np.ndarray, squares: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """For each pixel the nearest one of the object, as indices into the flattened [height, width].

    Args:
      near: indices of background pixels, int [pixels].
      squares: their squared distances from the object, [pixels], 1 to `_FARTHEST`.
      objects: [height, width], 0 or 1.
    """
    steps = _STEPS @ (objects.shape[1], 1)  # [squared distance, choices]
    inside = objects.ravel()
    nearest = near + steps[squares, 0]
    missing = np.flatnonzero(inside[nearest] == 0)
    for choice in range(1, steps.shape[1]):
        nearest[missing] = near[missing] + steps[squares[missing], choice]
        missing = missing[inside[nearest[missing]] == 0]
    return nearest


def _steps_by_square() -> np.ndarray:
    """The steps (rows, columns) of each squared length in the order of preference, padded with zeros: int
    [`_FARTHEST` + 1, choices, 2]."""
    steps = np.zeros((_FARTHEST + 1, 8, 2), np.intp)
    reach = range(-_MARGIN, _MARGIN + 1)
    for square in range(_FARTHEST + 1):
        found = [(row, column) for column in reach for row in reach if row**2 + column**2 == square]
        steps[square, : len(found)] = np.reshape(found, (-1, 2))
    return steps


_STEPS = _steps_by_square()
