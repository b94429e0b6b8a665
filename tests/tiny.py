"""A network small enough to compile in seconds: two levels from two convolutions."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from purinet_jax.network.layers import BatchNorm, Conv
from purinet_jax.network.model import PurNet
from purinet_jax.training.losses import Objective
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.step import TrainState, create_state


class TinyExtractor(nn.Module):
    """Levels of 6 and 8 channels at strides 2 and 4."""

    axis_name: str | None = None
    dtype: Any = jnp.float32

    strides: ClassVar[tuple[int, ...]] = (2, 4)
    pixel_mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    pixel_std: ClassVar[tuple[float, ...]] = (0.25, 0.25, 0.25)

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, ...]:
        levels = []
        for i, features in enumerate((6, 8)):
            images = Conv(features, 3, 2, dtype=self.dtype, name=f"conv{i}")(images)
            images = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=f"norm{i}")(images, train)
            images = jax.nn.relu(images)
            levels.append(images)
        return tuple(levels)


def tiny_model(axis_name: str | None = None, dtype: Any = jnp.float32, attention: bool = True) -> PurNet:
    return PurNet(
        TinyExtractor(axis_name, dtype),
        channels=8,
        attention=attention,
        scaled_promotion=True,
        axis_name=axis_name,
        dtype=dtype,
    )


def tiny_state(axis_name: str | None = None, accumulate: int = 1, **options: Any) -> TrainState:
    variables = tiny_model().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    optimizer = make_optimizer(OptimizerConfig(**{"rate": 0.01, **options.pop("optimizer", {})}), 100)
    objective = options.pop("objective", Objective("region", max_regions=16))
    return create_state(tiny_model(axis_name, **options), variables, optimizer, objective, accumulate)


def tiny_batch(seed: int, count: int = 8) -> dict[str, np.ndarray]:
    """uint8 images whose brighter half is the object, 16×16, in 16 square superpixels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((count, 16, 16, 1), np.uint8)
    for i in range(count):
        mask[i, :, : rng.integers(4, 12)] = 1
    image = (rng.integers(0, 100, (count, 16, 16, 3)) + 120 * mask).astype(np.uint8)
    squares = np.arange(16) // 4
    superpixels = np.broadcast_to(squares[:, None] * 4 + squares, (count, 16, 16)).astype(np.int32)
    return {"image": image, "mask": mask, "superpixels": superpixels}
