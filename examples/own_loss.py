"""Your own loss in the package's training loop: a boundary term in addition to the paper's.

    python examples/own_loss.py tiny demo/train/DUTS-TR runs/boundary

`train` takes a function of maps, batch and objective that returns named terms, such as `purnet_losses`. The backbone
and the purificatory pyramid follow all terms that do not belong to the promotion and rectification pyramids. Log and
TensorBoard show each term by its name.
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
    """Mean absolute difference between the gradients of map and mask, both [batch, height, width, 1] → a scalar."""
    difference = jax.nn.sigmoid(logits) - target
    return sum(jnp.abs(jnp.diff(difference, axis=axis)).mean() for axis in (1, 2))


def losses(maps: Maps, batch: Mapping[str, Array], objective: Objective) -> dict[str, Array]:
    """The package's terms and `boundary`, one value for each level."""
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
