"""Predicts with several networks in one call: `jax.vmap` over the weights of runs that differ in seed, data or losses.

    python examples/ensemble.py photo.jpg ensemble.png runs/seed0 runs/seed1 runs/seed2

Draws the image, the mean of the maps, and where they disagree. The networks may differ only in their weights.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

import purinet_jax
from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import read_srgb
from purinet_jax.network.inference import saliency_maps


def ensemble_maps(model: purinet_jax.PurNet, variables: Sequence[Any], images: Array) -> Array:
    """Predicts each network's maps: images uint8 [batch, height, width, 3] → float32 [networks, batch, height, width].

    `variables` are one tree for each network, all of the same shapes.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
    return jax.vmap(lambda own: saliency_maps(model, own, images))(stacked)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="runs' folders or files of weights")
    options = parser.parse_args(arguments)
    predictors = [purinet_jax.load(checkpoint) for checkpoint in options.checkpoints]
    first = predictors[0]
    if any(predictor.model != first.model for predictor in predictors):
        parser.error("the checkpoints are not all of the same network")
    square = resize_image(read_srgb(options.image)[0], first.size, first.size)
    maps = ensemble_maps(first.model, [predictor.variables for predictor in predictors], jnp.asarray(square[None]))
    mean, deviation = (np.asarray(x[0]) for x in (maps.mean(0), maps.std(0)))
    grey = (np.repeat((255 * x).astype(np.uint8)[..., None], 3, -1) for x in (mean, np.clip(2 * deviation, 0, 1)))
    Image.fromarray(np.hstack([square, *grey])).save(options.output)
    print(f"mean standard deviation of {len(predictors)} networks: {deviation.mean():.4f}")


if __name__ == "__main__":
    main()
