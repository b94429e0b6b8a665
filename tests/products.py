"""Convolutions as matrix products. For float64 XLA's CPU backend has nothing but loops in one thread, which take a
hundred times as long.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

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
    """What `lax.conv_general_dilated` gives, ungrouped and of one or two spatial axes."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    rank = len(window_strides)
    ones = (1,) * rank
    x, kernel = lhs.transpose(numbers.lhs_spec), rhs.transpose(numbers.rhs_spec)  # [N, C, …], [O, C, …]
    dilation, window = rhs_dilation or ones, kernel.shape[2:]
    extent = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    if isinstance(padding, str):
        assert padding == "VALID"
        padding = ((0, 0),) * rank
    interior = [size - 1 for size in lhs_dilation or ones]
    config = [(0, 0, 0)] * 2 + [(*pad, inside) for pad, inside in zip(padding, interior, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    shape = [
        (size - reach) // stride + 1 for size, reach, stride in zip(x.shape[2:], extent, window_strides, strict=True)
    ]
    axes = "xy"[:rank]
    if math.prod(window) <= math.prod(shape):
        total: Any = 0
        for tap in itertools.product(*map(range, window)):
            starts = [at * step for at, step in zip(tap, dilation, strict=True)]
            ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, shape, window_strides, strict=True)]
            part = lax.slice(x, (0, 0, *starts), (*x.shape[:2], *ends), (1, 1, *window_strides))
            total += jnp.einsum(f"nc{axes},oc->no{axes}", part, kernel[(slice(None), slice(None), *tap)])
    else:  # few values of large windows, as in a kernel's gradient
        values = []
        for place in itertools.product(*map(range, shape)):
            starts = [at * stride for at, stride in zip(place, window_strides, strict=True)]
            ends = [a + reach for a, reach in zip(starts, extent, strict=True)]
            part = lax.slice(x, (0, 0, *starts), (*x.shape[:2], *ends), (1, 1, *dilation))
            values.append(jnp.einsum(f"nc{axes},oc{axes}->no", part, kernel))
        total = jnp.stack(values, -1).reshape(*values[0].shape, *shape)
    order = [numbers.out_spec.index(axis) for axis in range(rank + 2)]
    return total.transpose(order)
