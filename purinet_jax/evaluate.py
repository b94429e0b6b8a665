"""Measures a network on a data set of images and masks, each at its image's own size, on the very maps that
`predict_files` would write. Nothing is kept but sums, so a data set may be of any length.
"""

from contextlib import closing
from typing import Any

import numpy as np

from purinet_jax.data.images import read_grey, read_rgb
from purinet_jax.data.pairs import Pairs
from purinet_jax.errors import InputError
from purinet_jax.metrics import Protocol, mean_absolute_error
from purinet_jax.predict import Predictor, predict_stream, show_progress


def evaluate(
    predictor: Predictor,
    pairs: Pairs,
    *,
    batch_size: int = 1,
    protocol: Protocol = "purnet",
    progress: bool = True,
) -> dict[str, Any]:
    """Predicts on every image of a data set and compares with its mask.

    Args:
      predictor: the network.
      pairs: the data set.
      batch_size: how many images the network takes at once.
      protocol: whose rules the numbers follow (`purinet_jax.metrics`).
      progress: whether to show a bar on stderr.

    Returns:
      `mae`, the mean over the images of each one's mean absolute error, in [0, 1]; `images`, their number;
      `protocol`; `size`, the side of the network's input, pixels. All of it fits in JSON.

    Raises:
      InputError: a file cannot be used, an image and its mask differ in size, the data set is empty, or
        `batch_size` is not positive.
    """
    if len(pairs) == 0:
        raise InputError(f"{pairs.path}: no pairs are left to measure on")

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        # Not `pairs[index]`: there the mask is cut already, by neither protocol's rule.
        image = read_rgb(pairs.storage.read(pairs.images[index]), pairs.image_path(index))
        mask = read_grey(pairs.storage.read(pairs.masks[index]), pairs.mask_path(index))
        pairs.check_sizes(index, image.shape[:2], mask.shape)
        return image, mask

    def measure(_: int, saliency: np.ndarray, mask: np.ndarray) -> float:
        return mean_absolute_error(saliency, mask, protocol)

    total = 0.0
    with closing(predict_stream(predictor, len(pairs), read, measure, batch_size=batch_size)) as results:
        for result in show_progress(results, len(pairs), progress):
            if isinstance(result, InputError):
                raise result
            total += result
    return {"mae": total / len(pairs), "images": len(pairs), "protocol": protocol, "size": predictor.size}
