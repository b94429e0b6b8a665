"""Max pooling as a maximum over shifted slices."""

from collections.abc import Callable
from functools import cache, reduce

import jax
import jax.numpy as jnp
from jax import Array


def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
    """Max pooling of non-negative `x` [batch, height, width, channels]; sides are divided by `stride` and rounded up.

    Equals PyTorch's `max_pool2d` (with `ceil_mode=True` for odd sides and even windows) behind a ReLU, where padding
    with zeros is as good as minus infinity. The gradient of the maximum over slices is 6 times as fast on XLA's CPU
    backend as that of `reduce_window`. In a traced network it is a function `max_pool_<window>_<stride>_<padding>`.
    """
    return _pooling(window, stride, padding)(x)


@cache
def _pooling(window: int, stride: int, padding: int) -> Callable[[Array], Array]:
    """`max_pool` with static arguments, jitted under a name that tells them to `purinet_jax.export`."""

    def pool(x: Array) -> Array:
        return _maximum_of_slices(x, window, stride, padding)

    pool.__name__ = f"{max_pool.__name__}_{window}_{stride}_{padding}"
    return jax.jit(pool)


def _maximum_of_slices(x: Array, window: int, stride: int, padding: int) -> Array:
    height, width = (-(-side // stride) for side in x.shape[1:3])
    after = [
        max((out - 1) * stride + window - side - padding, 0)
        for out, side in zip((height, width), x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), (padding, after[0]), (padding, after[1]), (0, 0)))
    rows, columns = ((out - 1) * stride + 1 for out in (height, width))
    return reduce(
        jnp.maximum,
        (
            x[:, row : row + rows : stride, column : column + columns : stride]
            for row in range(window)
            for column in range(window)
        ),
    )
