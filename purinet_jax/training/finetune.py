"""Fine-tuning: `train` from the weights of a complete network, whose configuration and size it takes over."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from purinet_jax.data import Pairs, open_pairs
from purinet_jax.data.augment import resize_image, resize_labels
from purinet_jax.errors import InputError, escaped
from purinet_jax.files import write_atomically
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.inference import saliency_maps
from purinet_jax.network.panels import grey_colours, tile
from purinet_jax.training.checkpoints import read_record
from purinet_jax.training.step import TrainState
from purinet_jax.training.train import train
from purinet_jax.weights.files import load_file, stored_size
from purinet_jax.weights.runs import HELD_OUT
from purinet_jax.weights.shipped import weights_path
from purinet_jax.weights.variables import BackboneConfig

logger = logging.getLogger(__name__)

PANEL = "held_out.png"
"""The name of the image of held-out pairs, with their maps before and after, in a run's folder."""

_HELD_OUT_SHARE = 0.15
_MOST_HELD_OUT = 200
_PANEL_ROWS = 6
_PANEL_CELL = 160


def finetune(
    config: ConfigDict,
    data: str | Path,
    output: str | Path,
    *,
    checkpoint: str | Path | None = None,
    size: int | None = None,
    skip_bad: bool = False,
    object_labels: Sequence[int] = (),
    progress: bool = True,
) -> TrainState:
    """Fine-tunes a network, or goes on with the run in `output`, and writes `PANEL` there.

    Args:
      config: as `load_config("finetune")` gives it; its `model` and `data.size` are replaced by those of the weights.
        `data.holdout` = 0 holds out 15 % of the pairs, from 1 to 200.
      data: pairs, a folder, archive or prepared set (`open_pairs`).
      output: the run's folder.
      checkpoint: weights of a complete network: a file, another run's folder, or the name of one of the package's
        networks; by default the first of those.
      size: side in pixels that images are resized to; by default the size that the weights are for, or 320.
      skip_bad: as in `train`.
      object_labels: as of `open_pairs`.
      progress: as in `train`.

    Returns:
      The state after the last step; the best checkpoint may be an earlier one.

    Raises:
      InputError: as `train`, or the weights are those of a backbone alone.
      RunFailure: as `train`.
    """
    output = Path(output)
    init = weights_path(checkpoint)
    before, weights = load_file(init)
    if isinstance(weights, BackboneConfig):
        raise InputError(f"{init}: holds the backbone {weights.backbone} alone; `purinet train --init` trains from it")
    pairs = open_pairs(data, object_labels=object_labels)
    config = ConfigDict(config.to_dict())  # the caller's stays as it is
    config.model = ConfigDict(weights.to_dict())
    config.data.size = size or stored_size(init) or 320
    config.data.holdout = config.data.holdout or held_out_pairs(len(pairs))
    state = train(config, pairs, output, init=init, skip_bad=skip_bad, progress=progress)
    errors = {int(step): error for step, error in read_record(output).validated}
    if errors:
        best = min(errors, key=lambda step: errors[step])
        after, _ = load_file(output)
        names = set((output / HELD_OUT).read_text("utf-8", "surrogateescape").splitlines()[:_PANEL_ROWS])
        shown = pairs.subset(index for index, name in enumerate(pairs.names) if escaped(name) in names)
        write_atomically(output / PANEL, _panel(shown, weights, config.data.size, before, after))
        logger.info(
            "validation MAE %.4f before, %.4f at step %d, the best%s; %s shows held-out pairs",
            errors[min(errors)],
            errors[best],
            best,
            "" if best else " (no step improved on the weights, which stay as they were)",
            output / PANEL,
        )
    return state


def held_out_pairs(count: int) -> int:
    """Returns how many of `count` pairs are held out by default."""
    return min(_MOST_HELD_OUT, max(1, round(_HELD_OUT_SHARE * count)))


def _panel(pairs: Pairs, weights: ModelConfig, size: int, before: Any, after: Any) -> bytes:
    """A PNG with a row for each pair: image, mask, map before, map after."""
    model = weights.build()
    examples = [pairs[index] for index in range(len(pairs))]
    images = [resize_image(example["image"], size, size) for example in examples]
    masks = [resize_labels(example["mask"], size, size)[..., None] for example in examples]
    maps = [
        [grey_colours(saliency_maps(model, variables, image[None])[0, ..., None]) for image in images]
        for variables in map(jax.device_put, (before, after))
    ]
    side = (_PANEL_CELL, _PANEL_CELL)
    columns = [
        np.stack([cv2.resize(cell, side, interpolation=cv2.INTER_AREA) for cell in column])
        for column in (images, map(grey_colours, masks), *maps)
    ]
    buffer = io.BytesIO()
    Image.fromarray(tile(columns)).save(buffer, "PNG")
    return buffer.getvalue()
