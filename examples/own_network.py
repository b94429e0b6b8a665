"""Both attentions and the structural loss as functions, in a Flax network that has nothing else of this package.

    python examples/own_network.py

A small U-shaped network learns to find the brighter of two squares, in seconds. The attentions are pure functions of
features, the loss is one of logits, masks and regions, so that any network's features and maps will do.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from purinet_jax import promotion_attention, rectification_attention, structural_similarity_loss
from purinet_jax.training import grid_regions

SIZE, REGIONS = 48, 36


class OwnNetwork(nn.Module):
    """Images [batch, height, width, 3] → logits [batch, height, width, 1], and what the network takes for its error."""

    channels: int = 12

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        fine = nn.relu(nn.Conv(self.channels, (3, 3))(images))
        coarse = nn.relu(nn.Conv(self.channels, (3, 3))(nn.max_pool(fine, (4, 4), (4, 4))))
        coarse = promotion_attention(coarse, scaled=True) * coarse + coarse
        features = fine + jax.image.resize(coarse, fine.shape, "bilinear")
        appearance = nn.Conv(self.channels, (3, 3))(features)
        error = nn.Conv(self.channels, (3, 3))(features)
        features = rectification_attention(appearance, error) * features + features
        return nn.Conv(1, (1, 1))(features), nn.Conv(1, (1, 1))(error - appearance)


def pictures(key: Array, count: int = 8) -> tuple[Array, Array]:
    """Images with a bright square, the object, and a dark one; its masks [count, SIZE, SIZE, 1]."""
    corners = jax.random.randint(key, (count, 2, 2), 0, SIZE - 16)
    pixels = jnp.stack(jnp.meshgrid(jnp.arange(SIZE), jnp.arange(SIZE), indexing="ij"), -1)
    offsets = pixels[None, None] - corners[:, :, None, None]
    bright, dark = jnp.moveaxis(((offsets >= 0) & (offsets < 16)).all(-1).astype(jnp.float32), 1, 0)[..., None]
    noise = 0.2 * jax.random.normal(jax.random.fold_in(key, 1), (count, SIZE, SIZE, 3))
    return 0.8 * bright + 0.4 * dark * (1 - bright) + noise, bright


def loss(params: dict, model: nn.Module, images: Array, masks: Array) -> Array:
    """Cross-entropy, the structural loss on rectangles, and what the rectification learns: the signed error."""
    logits, error = model.apply({"params": params}, images)
    regions = jnp.broadcast_to(grid_regions(SIZE, SIZE, REGIONS), images.shape[:3])
    structural = structural_similarity_loss(logits, masks, regions, released=False, max_regions=REGIONS)
    wrong = masks - jax.lax.stop_gradient(jax.nn.sigmoid(logits))
    rectification = jnp.square(jnp.tanh(error) - wrong).mean()
    return optax.sigmoid_binary_cross_entropy(logits, masks).mean() + structural.sum() + rectification


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Trains, prints and returns the first and the last loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args(arguments).steps
    model, optimizer = OwnNetwork(), optax.adam(1e-2)
    params = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    state = optimizer.init(params)

    @jax.jit
    def step(params: dict, state: optax.OptState, key: Array) -> tuple[dict, optax.OptState, Array]:
        value, gradient = jax.value_and_grad(loss)(params, model, *pictures(key))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for key in jax.random.split(jax.random.key(1), steps):
        params, state, value = step(params, state, key)
        losses.append(float(value))
    print(f"loss of the first step {losses[0]:.3f}, of the last {losses[-1]:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
