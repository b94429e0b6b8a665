"""A network small enough to compile in seconds: two levels from two convolutions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from purinet_jax.network.layers import BatchNorm, Conv, Norm
from purinet_jax.network.model import ATTENTIONS, PurNet
from purinet_jax.training.initial import draw
from purinet_jax.training.losses import Objective, purnet_losses
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.step import TrainState, create_state, pmap_step


class TinyBackbone(nn.Module):
    """Levels of 6 and 8 channels at strides 2 and 4."""

    strides: ClassVar[tuple[int, ...]] = (2, 4)
    pixel_mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    pixel_std: ClassVar[tuple[float, ...]] = (0.25, 0.25, 0.25)

    @nn.compact
    def __call__(self, images: Array, norm: Norm = BatchNorm, remat: Any = None) -> tuple[Array, ...]:
        levels = []
        for i, features in enumerate((6, 8)):
            images = Conv(features, 3, 2, name=f"conv{i}")(images)
            images = jax.nn.relu(norm(name=f"norm{i}")(images))
            levels.append(images)
        return tuple(levels)


def tiny_model(
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
    attention: tuple[str, ...] = ATTENTIONS,
    remat: bool = False,
) -> PurNet:
    return PurNet(
        TinyBackbone(),
        channels=8,
        attention=attention,
        scaled_promotion=True,
        axis_name=axis_name,
        dtype=dtype,
        remat=remat,
    )


# A program is compiled for one optimiser (a pair of functions) and one step: tests share those of equal arguments.
_optimizers: dict[str, optax.GradientTransformation] = {}


def shared_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """`make_optimizer`, the same one for the same arguments."""
    key = f"{config} {steps}"
    if key not in _optimizers:
        _optimizers[key] = make_optimizer(config, steps)
    return _optimizers[key]


def shared_pmap_step(devices: Sequence[jax.Device] | None = None) -> Callable[..., Any]:
    """`pmap_step`, the same one for the same devices."""
    return _pmap_step(tuple(devices or jax.devices()))


@functools.cache
def _pmap_step(devices: tuple[jax.Device, ...]) -> Callable[..., Any]:
    return pmap_step(devices)


@functools.cache
def tiny_variables() -> Any:
    return draw(jax.eval_shape(tiny_model().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))), seed=0)


def tiny_state(axis_name: str | None = None, accumulate: int = 1, **options: Any) -> TrainState:
    optimizer = shared_optimizer(OptimizerConfig(**{"rate": 0.01, **options.pop("optimizer", {})}), 100)
    objective = options.pop("objective", Objective(max_regions=16, superpixels="files"))
    losses = options.pop("losses", purnet_losses)
    model = tiny_model(axis_name, **options)
    return create_state(model, tiny_variables(), optimizer, objective, accumulate, losses=losses)


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
