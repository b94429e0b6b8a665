"""A loss of one's own in this package's training, without a copy of its loop: a boundary term beside the paper's.

    python examples/own_loss.py tiny demo/train/DUTS-TR runs/boundary

`train` takes a function of maps, batch and objective that gives named terms, as `purnet_losses` does. Everything else
(batches, three gradients, devices, checkpoints, going on) stays; terms that the promotion and rectification pyramids do
not own are followed by the extractor and the purificatory pyramid, and appear in log and TensorBoard by their names.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array

from purinet_jax.network.model import Maps
from purinet_jax.training import Objective, load_config, purnet_losses
from purinet_jax.training.train import train


def boundary_loss(logits: Array, target: Array) -> Array:
    """Mean absolute difference of the steps between neighbouring pixels, of map and mask: [batch, height, width, 1] of
    both → a scalar."""
    difference = jax.nn.sigmoid(logits) - target
    return sum(jnp.abs(jnp.diff(difference, axis=axis)).mean() for axis in (1, 2))


def losses(maps: Maps, batch: Mapping[str, Array], objective: Objective) -> dict[str, Array]:
    """The package's terms, and `boundary` for each level."""
    target = batch["mask"].astype(jnp.float32)
    boundary = jnp.stack([boundary_loss(logits, target) for logits in maps.saliency])
    return {**purnet_losses(maps, batch, objective), "boundary": boundary}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a configuration's name or file")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--init", type=Path, help="weights to start from")
    options, overrides = parser.parse_known_args(arguments)
    train(load_config(options.config, overrides), options.data, options.output, init=options.init, losses=losses)


if __name__ == "__main__":
    main()
