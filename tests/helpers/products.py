"""Convolutions as matrix products. XLA's CPU backend computes those of float64 by loops in one thread, which take a
hundred times as long.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
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
    """`x` [batch, space …, in] and `kernel` [out, window …, in] → [batch, space …, out]. Traced once for each shape.

    Not as a loop over the window: loops of all convolutions took the network's gradient three times as long to compile.
    """
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *padding, (0, 0, 0)))
    window = kernel.shape[1:-1]
    extent = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    shape = [(size - reach) // stride + 1 for size, reach, stride in zip(x.shape[1:-1], extent, strides, strict=True)]

    def part(start: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> Array:
        """`x` at `counts` positions from `start`, `steps` apart."""
        stop = [at + (count - 1) * step + 1 for at, count, step in zip(start, counts, steps, strict=True)]
        return x[:, *map(slice, start, stop, steps)]

    def positions(counts: Sequence[int], steps: Sequence[int]) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(0, count * step, step) for count, step in zip(counts, steps, strict=True)))

    if math.prod(window) <= math.prod(shape):
        taps = [part(start, shape, strides) for start in positions(window, dilation)]
        return jnp.concatenate(taps, -1) @ kernel.reshape(len(kernel), -1).T

    # few values of large windows, as in a kernel's gradient
    windows = [part(start, window, dilation).reshape(len(x), -1) for start in positions(shape, strides)]
    values = jnp.stack(windows, 1) @ kernel.reshape(len(kernel), -1).T
    return values.reshape(len(x), *shape, len(kernel))
