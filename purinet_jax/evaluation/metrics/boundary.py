"""Boundary IoU: how well the map's edges match the mask's, independently of the object's size.

Cheng, Girshick, Dollár, Berg, Kirillov: Boundary IoU: Improving Object-Centric Image Segmentation Evaluation,
CVPR 2021.
"""

import math

import cv2
import numpy as np

_DILATION_RATIO = 0.02
_THRESHOLD = 0.5


def boundary_iou(values: np.ndarray, objects: np.ndarray) -> float:
    """|G_d ∩ P_d| / |G_d ∪ P_d|, in [0, 1]: G_d and P_d are the pixels of the mask and of the map that lie within d of
    their own edge, on the inside. The image's frame is an edge too. d is 2 % of the diagonal, rounded, at least one
    pixel, measured along rows, columns and diagonals alike (repeated 3 × 3 erosions), as in the published code.

    The map is cut at half of its stretched range (≥ 0.5). Where neither has an object, the result is 1.

    Args:
      values: float64 [height, width] in [0, 1].
      objects: bool [height, width].
    """
    found, true = _boundary(values >= _THRESHOLD), _boundary(objects)
    either = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / either if either else 1.0


def _boundary(objects: np.ndarray) -> np.ndarray:
    depth = max(1, round(_DILATION_RATIO * math.hypot(*objects.shape)))
    outside: tuple[int, ...] = (0,)
    core = cv2.erode(
        objects.view(np.uint8),
        np.ones((3, 3), np.uint8),
        iterations=depth,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=outside,
    )
    return objects & (core == 0)
