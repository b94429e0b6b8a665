"""Measures of a saliency map against its mask. There are two protocols, whose numbers are not comparable:
"purnet", the released code's, which the paper's tables use, and "pysod", PySODMetrics', which most of the
field uses.
"""

from typing import Literal

import numpy as np

Protocol = Literal["purnet", "pysod"]

# The grey value, of 255, above which a mask's pixel is object: only full white, or the brighter half. On
# masks with soft edges that alone moves an image's error by .002.
_MASK_ABOVE: dict[Protocol, int] = {"purnet": 254, "pysod": 128}


def mean_absolute_error(saliency: np.ndarray, mask: np.ndarray, protocol: Protocol = "purnet") -> float:
    """Mean absolute difference of a min-max normalised map and its mask, in [0, 1]; 0 is perfect.

    Args:
      saliency: uint8 or float [height, width], of any range. It is stretched to [0, 1]; a constant map, which
        cannot be, is taken as it is, uint8 as parts of 255.
      mask: uint8 [height, width], grey from 0 to 255, cut as the protocol says; or bool [height, width].
      protocol: "purnet" (object is 255) or "pysod" (object is above 128).

    Raises:
      ValueError: another dtype of mask, or sizes that differ.
    """
    if mask.dtype not in (np.bool_, np.uint8) or saliency.shape != mask.shape:
        raise ValueError(f"a mask must be bool or uint8 {saliency.shape}, as its map, not {mask.dtype} {mask.shape}")
    values = saliency.astype(np.float64)
    if saliency.dtype == np.uint8:
        values /= 255
    low, high = values.min(), values.max()
    if low != high:
        values = (values - low) / (high - low)
    truth = mask if mask.dtype == np.bool_ else mask > _MASK_ABOVE[protocol]
    return float(np.abs(values - truth).mean())
