"""Remove specks from saliency maps and fill holes, at the threshold of masks, without moving the object's edges.

Which parts of a map are connected at the threshold is found at the image's size. What surrounds a removed part below
the threshold is removed as far as no part that is kept is nearer; distances are measured at a small size.
"""

import cv2
import numpy as np

from purinet_jax.prediction.cutouts import strips
from purinet_jax.prediction.refine import upsampled_strips

# The longer side of the image in which distances are measured, pixels.
_SIDE = 1024
# How far the soft edge of a part reaches, as a share of the longer side.
_REACH = 0.01

_KEPT, _REMOVED = 1, 2


def clean(
    saliency: np.ndarray, threshold: float, keep_largest: bool = False, min_area: float = 0.0, fill_holes: bool = False
) -> None:
    """Removes specks from a map and fills its holes, in place.

    Args:
      saliency: the map, uint8 [height, width].
      threshold: the saliency in (0, 1) from which a pixel belongs to the object; those of it that touch, also by their
        corners, are one part.
      keep_largest: whether all parts but the largest become 0. Holes are filled before.
      min_area: parts that cover a smaller share of the image, in [0, 1), become 0.
      fill_holes: whether what the object encloses becomes 255.
    """
    if fill_holes:
        np.subtract(255, saliency, out=saliency)
        state = (saliency > 255 - threshold * 255).astype(np.uint8)
        labels, boxes = _components(state, 4)
        height, width = saliency.shape
        left, top = boxes[:, cv2.CC_STAT_LEFT], boxes[:, cv2.CC_STAT_TOP]
        right, bottom = left + boxes[:, cv2.CC_STAT_WIDTH], top + boxes[:, cv2.CC_STAT_HEIGHT]
        _mark(state, labels, (left == 0) | (top == 0) | (right == width) | (bottom == height))
        del labels
        _suppress(saliency, state, 1 - threshold, near=True)
        np.subtract(255, saliency, out=saliency)
    if keep_largest or min_area > 0:
        state = (saliency >= threshold * 255).astype(np.uint8)
        labels, boxes = _components(state, 8)
        areas = boxes[:, cv2.CC_STAT_AREA]
        kept = areas >= min_area * saliency.size
        if keep_largest:
            kept &= np.arange(len(areas)) == (1 + areas[1:].argmax() if len(areas) > 1 else 0)
        _mark(state, labels, kept)
        del labels
        _suppress(saliency, state, threshold)


def _components(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels int32 [height, width], 0 outside the mask, and OpenCV's statistics [labels, 5]."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity, ltype=cv2.CV_32S)
    return labels, statistics


def _mark(state: np.ndarray, labels: np.ndarray, kept: np.ndarray) -> None:
    """Sets `state` to `_KEPT` or `_REMOVED` where a label is not 0, by whether each label is kept."""
    table = np.where(kept, np.uint8(_KEPT), np.uint8(_REMOVED))
    table[0] = 0
    for rows in strips(*state.shape):  # because indexing converts the labels to 64 bits
        state[rows] = table[labels[rows]]


def _suppress(values: np.ndarray, state: np.ndarray, threshold: float, near: bool = False) -> None:
    """Sets values uint8 [height, width] to 0 where `state` is `_REMOVED`, and where that is nearer than `_KEPT`; if
    `near`, only its soft edge."""
    height, width = values.shape
    scale = min(1.0, _SIDE / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))

    def reduced(mask: np.ndarray) -> np.ndarray:
        return cv2.resize(mask, small, interpolation=cv2.INTER_AREA)

    kept, removed = (reduced(np.where(state == mark, np.uint8(255), np.uint8(0))) > 0 for mark in (_KEPT, _REMOVED))
    # What stays below the threshold, but reaches half of it, is removed unless it is connected to what is kept.
    faint = (reduced(values) > threshold * 127.5) | kept
    count, labels = cv2.connectedComponents(faint.astype(np.uint8), connectivity=8)
    connected = faint & (np.bincount(labels[kept], minlength=count) > 0)[labels]
    removed |= faint & ~connected
    if not removed.any():
        return
    reach = max(_REACH * max(small), 1.0)
    to_removed = _distances(removed)
    to_kept = _distances(kept | (connected & (to_removed > reach)))
    share = np.clip((to_kept - to_removed + 1) / 2, 0, 1)
    if near:
        share *= np.clip(2 - to_removed / reach, 0, 1)
    for rows, (strip,) in upsampled_strips(1 - share[..., None], height, width):
        faded = (values[rows] * strip + 0.5).astype(np.uint8)
        marks = state[rows]
        values[rows] = np.where(marks == _KEPT, values[rows], np.where(marks == _REMOVED, 0, faded))


def _distances(mask: np.ndarray) -> np.ndarray:
    """Returns each pixel's distance to a mask, float32 [height, width]; very large if the mask is empty."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
