"""Fine-tuning: a run of `train` that starts from a whole network's weights, on pairs of one's own. What the weights say
(network, size) and what the pairs say (how many are held out) is put into the configuration here.
"""

import io
import json
import logging
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from purinet_jax.data import Pairs, open_pairs
from purinet_jax.data.augment import resize_image, resize_labels
from purinet_jax.errors import InputError
from purinet_jax.files import write_atomically
from purinet_jax.network.inference import saliency_maps
from purinet_jax.network.model import build_model, model_config
from purinet_jax.network.panels import grey_colours, tile
from purinet_jax.training.step import TrainState
from purinet_jax.training.train import train
from purinet_jax.weights.convert import load_file, stored_size
from purinet_jax.weights.runs import HELD_OUT
from purinet_jax.weights.shipped import shipped_file, shipped_name

logger = logging.getLogger(__name__)

PICTURE = "held_out.png"
"""What a run's folder calls the picture of held-out pairs with their maps before and after."""

_HELD_OUT_SHARE = 0.15
_MOST_HELD_OUT = 200
_PICTURE_ROWS = 6
_PICTURE_CELL = 160


def finetune(
    config: ConfigDict,
    data: str | Path,
    output: str | Path,
    *,
    checkpoint: str | Path | None = None,
    size: int | None = None,
    skip_bad: bool = False,
    progress: bool = True,
) -> TrainState:
    """Fine-tunes a network, or goes on with the run in `output`, as `train` does; the folder then also has a picture of
    held-out pairs (`PICTURE`): image, mask, and the maps before and after.

    Args:
      config: as `load_config("finetune")` gives it. The weights' network takes the place of `config.model`, and
        `config.data.size`'s is taken by `size`; `config.data.holdout` = 0 holds out 15 % of the pairs, from 1 to 200.
      data: pairs, a folder, zip or prepared set (`open_pairs`).
      output: the run's folder.
      checkpoint: weights of a whole network: a file, another run's folder, or the name of one of the package's; by
        default the first of those.
      size: side in pixels that images are squashed to; by default what the weights are for, or 320.
      skip_bad, progress: as in `train`.

    Returns:
      The last state, as `train` gives it. The folder's best checkpoint may be another one.

    Raises:
      InputError: as `train`, or the weights are those of an extractor alone.
      NonFiniteLoss: as `train`.
    """
    output = Path(output)
    name = shipped_name(checkpoint)
    init = Path(checkpoint or "") if name is None else shipped_file(name)
    before, described = load_file(init)
    if "part" in described:
        raise InputError(
            f"{init}: holds the extractor {described['backbone']} alone; training from it is `purinet train --init`"
        )
    pairs = open_pairs(data)
    # A copy of its own: the caller's stays what it was.
    config = ConfigDict(config.to_dict())
    config.model = ConfigDict(model_config(build_model(described)))
    config.data.size = size or stored_size(init) or 320
    config.data.holdout = config.data.holdout or held_out_pairs(len(pairs))
    state = train(config, data, output, init=init, skip_bad=skip_bad, progress=progress)
    errors = _validation_errors(output)
    if errors:
        best = min(errors, key=lambda step: errors[step])
        after, _ = load_file(output)
        names = set((output / HELD_OUT).read_text().splitlines()[:_PICTURE_ROWS])
        shown = pairs.subset(index for index, name in enumerate(pairs.names) if name in names)
        write_atomically(output / PICTURE, _picture(shown, config, before, after))
        logger.info(
            "validation MAE %.4f before, %.4f at step %d, the best%s; %s shows held-out pairs",
            errors[min(errors)],
            errors[best],
            best,
            "" if best else " (nothing was gained: the weights stay what they were)",
            output / PICTURE,
        )
    return state


def held_out_pairs(count: int) -> int:
    """How many of `count` pairs are held out where nothing else is said."""
    return min(_MOST_HELD_OUT, max(1, round(_HELD_OUT_SHARE * count)))


def _validation_errors(output: Path) -> dict[int, float]:
    """The run's validation MAE by step, as its log has them."""
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return {line["step"]: line["validation/mae"] for line in lines if "validation/mae" in line}


def _picture(pairs: Pairs, config: ConfigDict, before: Any, after: Any) -> bytes:
    """A row for each pair: image, mask, map before, map after; PNG."""
    size = config.data.size
    model = build_model(config.model)
    images = [resize_image(pairs[index]["image"], size, size) for index in range(len(pairs))]
    masks = [255 * resize_labels(pairs[index]["mask"], size, size) for index in range(len(pairs))]
    maps = [
        [grey_colours(saliency_maps(model, variables, image[None])[0, ..., None]) for image in images]
        for variables in map(jax.device_put, (before, after))
    ]
    columns = [images, [np.repeat(mask[..., None].astype(np.uint8), 3, -1) for mask in masks], *maps]
    side = (_PICTURE_CELL, _PICTURE_CELL)
    small = [np.stack([cv2.resize(cell, side, interpolation=cv2.INTER_AREA) for cell in column]) for column in columns]
    buffer = io.BytesIO()
    Image.fromarray(tile(small)).save(buffer, "PNG")
    return buffer.getvalue()
