"""Convolutions as matrix products. XLA's CPU backend computes those of float64 by loops in one thread, which take a
hundred times as long.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def convolution_by_products(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
) -> Array:
    """`lax.conv_general_dilated` without groups, of one or two spatial axes."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    rank = len(window_strides)
    if isinstance(padding, str):
        assert padding == "VALID"
        padding = ((0, 0),) * rank
    y = _products(
        lhs.transpose(_channels_last(numbers.lhs_spec)),
        rhs.transpose(_channels_last(numbers.rhs_spec)),
        tuple(window_strides),
        tuple((low, high, size - 1) for (low, high), size in zip(padding, lhs_dilation or (1,) * rank, strict=True)),
        tuple(rhs_dilation or (1,) * rank),
    )
    return y.transpose([_channels_last(numbers.out_spec).index(axis) for axis in range(rank + 2)])


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """(batch or out, channels, space …) → (batch or out, space …, channels)."""
    return (spec[0], *spec[2:], spec[1])


@partial(jax.jit, static_argnums=(2, 3, 4))
def _products(
    x: Array,
    kernel: Array,
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int, int], ...],
    dilation: tuple[int, ...],
) -> Array:
    """`x` [batch, space …, in] and `kernel` [out, window …, in] → [batch, space …, out].

    As a loop, whose body is compiled once and not for each tap of the window. Traced once for each shape.
    """
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *padding, (0, 0, 0)))
    window = kernel.shape[1:-1]
    extent = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    shape = [(size - reach) // stride + 1 for size, reach, stride in zip(x.shape[1:-1], extent, strides, strict=True)]

    def positions(counts: Sequence[int], steps: Sequence[int]) -> np.ndarray:
        return np.array(list(itertools.product(*map(range, counts)))) * np.array(steps)

    def part(start: Array, counts: Sequence[int], steps: Sequence[int]) -> Array:
        """`x` at `counts` positions from `start`, `steps` apart."""
        sizes = [(count - 1) * step + 1 for count, step in zip(counts, steps, strict=True)]
        window = lax.dynamic_slice(x, (0, *start, 0), (len(x), *sizes, x.shape[-1]))
        return window[:, *(slice(None, None, step) for step in steps)]

    if math.prod(window) <= math.prod(shape):

        @jax.checkpoint
        def tap(total: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
            start, values = at
            return total + part(start, shape, strides) @ values, None

        taps = jnp.moveaxis(kernel.reshape(len(kernel), -1, kernel.shape[-1]), 0, 2)
        total = jnp.zeros((len(x), *shape, len(kernel)), x.dtype)
        return lax.scan(tap, total, (positions(window, dilation), taps))[0]

    # few values of large windows, as in a kernel's gradient
    @jax.checkpoint
    def value(_: None, start: Array) -> tuple[None, Array]:
        return None, part(start, window, dilation).reshape(len(x), -1) @ kernel.reshape(len(kernel), -1).T

    values = lax.scan(value, None, positions(shape, strides))[1]
    return jnp.moveaxis(values, 0, 1).reshape(len(x), *shape, len(kernel))
