"""Steady the maps of a video: average them over frames along the motion of the image, as far as it looks the same."""

import cv2
import numpy as np

from purinet_jax.prediction.refine import logits

# The weight of earlier frames where the image has only moved, and the mean difference of the colours in a window, in
# levels, at which it falls to 1 / e of that.
_KEPT, _DIFFERENCE = 0.8, 15
_WINDOW = 9
# Where the mean weight is below this part of `_KEPT`, the scene has changed.
_CUT = 0.25
# Motion is estimated at half the size, or at this one if that is smaller, which OpenCV refuses; pixels.
_SMALLEST = 32


class Smoother:
    """A running average of the maps of one video.

    The average of the frames before is moved by the optical flow from the last frame to this one. Logits are averaged,
    because averages of probabilities would blur edges.
    """

    def __init__(self) -> None:
        self._square: np.ndarray | None = None
        self._logits: np.ndarray | None = None

    def __call__(self, square: np.ndarray, saliency: np.ndarray) -> np.ndarray:
        """Returns the steadied map of the next frame; the first one, and that after a cut, are returned as they are.

        Args:
          square: uint8 [size, size, 3], the frame as the network saw it.
          saliency: float32 [size, size] in [0, 1], its map.

        Returns:
          float32 [size, size] in [0, 1].
        """
        current = logits(saliency)
        earlier = None if self._square is None else self._average(square, current)
        self._square = square
        if earlier is None:
            self._logits = current
            return saliency
        self._logits = earlier
        return 1 / (1 + np.exp(-earlier))

    def _average(self, square: np.ndarray, current: np.ndarray) -> np.ndarray | None:
        """Returns the average with the frames before, or None if they show another scene."""
        assert self._square is not None
        assert self._logits is not None
        planes = _sources(self._square, square)
        moved, before = (
            cv2.remap(values, *planes, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for values in (self._square, self._logits)
        )
        difference = cv2.blur(cv2.absdiff(moved, square).mean(axis=2, dtype=np.float32), (_WINDOW, _WINDOW))
        weight = _KEPT * np.exp(-((difference / _DIFFERENCE) ** 2))
        if weight.mean() < _CUT * _KEPT:
            return None
        return current + weight * (before - current)


def _sources(earlier: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the column and row, float32 [size, size], at which each pixel of a frame was in the earlier one."""
    size = len(square)
    side = max(size // 2, _SMALLEST)
    small = [
        cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (side, side), interpolation=cv2.INTER_AREA)
        for image in (square, earlier)
    ]
    still = np.zeros((side, side, 2), np.float32)  # where the search starts
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST).calc(small[0], small[1], still)
    right, down = cv2.split(cv2.resize(flow, (size, size), interpolation=cv2.INTER_LINEAR) * np.float32(size / side))
    index = np.arange(size, dtype=np.float32)
    return index + right, index[:, None] + down
