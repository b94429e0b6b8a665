"""Max pooling as a maximum over shifted slices."""

from collections.abc import Callable
from functools import cache, reduce

import jax
import jax.numpy as jnp
from jax import Array

from purinet_jax.network.cpu.depthwise import shifted_slices


def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
    """Max pooling of non-negative `x` [batch, height, width, channels]; sides are divided by `stride` and rounded up.

    Equals PyTorch's `max_pool2d` (with `ceil_mode=True` for odd sides and even windows) behind a ReLU, where padding
    with zeros is as good as minus infinity. The gradient of the maximum over slices is 6 times as fast on XLA's CPU
    backend as that of `reduce_window`.
    """

    return _pool(window, stride, padding)(x)


@cache
def _pool(window: int, stride: int, padding: int) -> Callable[[Array], Array]:
    """`max_pool`, jitted: one function for each of its settings, so that it is compiled once."""

    def pool(x: Array) -> Array:
        after = [max((-(-side // stride) - 1) * stride + window - side - padding, 0) for side in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), (padding, after[0]), (padding, after[1]), (0, 0)))
        return reduce(jnp.maximum, shifted_slices(x, window, stride).values())

    # `purinet_jax.export.graph` reads the static arguments from the function's name in a traced network.
    pool.__name__ = f"max_pool_{window}_{stride}_{padding}"
    return jax.jit(pool)
