"""Depthwise convolutions as sums of shifted products."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from purinet_jax.network.cpu.normalisation import sum_over_pixels
from purinet_jax.network.cpu.platform import traced_for_cpus


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """Depthwise convolution with TensorFlow's `SAME` padding.

    `x` [batch, height, width, channels], `kernel` [side, side, channels, 1] → [batch, ceil(height / stride),
    ceil(width / stride), channels]. One shifted multiply-add per tap, and written-out gradients: XLA's grouped
    convolution is slow on CPUs, and its gradients are a hundred times slower.
    """
    slices = _same_slices(x, kernel.shape[0], stride).items()
    return sum(part * kernel[tap][:, 0] for tap, part in slices)  # type: ignore[return-value]


def _same_slices(x: Array, window: int, stride: int) -> dict[tuple[int, int], Array]:
    padding = [same_padding(side, window, stride) for side in x.shape[1:3]]
    return shifted_slices(jnp.pad(x, ((0, 0), *padding, (0, 0))), window, stride)


def shifted_slices(x: Array, window: int, stride: int) -> dict[tuple[int, int], Array]:
    """The pixels of `x` [batch, height, width, channels] under each tap (row, column) of a square window."""
    height, width = ((side - window) // stride * stride + 1 for side in x.shape[1:3])
    return {
        (row, column): x[:, row : row + height : stride, column : column + width : stride]
        for row, column in itertools.product(range(window), repeat=2)
    }


def _depthwise_backward(stride: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    sums = [sum_over_pixels(part * gradient) for part in _same_slices(x, kernel.shape[0], stride).values()]
    x_gradient = _depthwise_transposed(gradient, kernel, stride, (x.shape[1], x.shape[2]))
    return _fusion_barrier(x_gradient, kernel[0, 0, 0, 0]), jnp.stack(sums).reshape(kernel.shape)


depthwise_convolution.defvjp(
    lambda x, kernel, stride: (depthwise_convolution(x, kernel, stride), (x, kernel)), _depthwise_backward
)


def _depthwise_transposed(gradient: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    """The transpose of `depthwise_convolution` in its image of `size`: each phase of rows and columns is a sum of
    shifted products."""
    window = kernel.shape[0]
    before = [same_padding(side, window, stride)[0] for side in size]
    height, width = (-(-side // stride) for side in size)
    gradient = jnp.pad(gradient, ((0, 0), (window, window), (window, window), (0, 0)))
    phases = [
        sum(
            kernel[row, column, :, 0] * gradient[:, top : top + height, left : left + width]
            for row in range((i + before[0]) % stride, window, stride)
            for column in range((j + before[1]) % stride, window, stride)
            for top in [window + (i + before[0] - row) // stride]
            for left in [window + (j + before[1] - column) // stride]
        )
        for i, j in itertools.product(range(stride), repeat=2)
    ]
    batch, features = gradient.shape[0], gradient.shape[-1]
    x = jnp.stack(phases, 0).reshape(stride, stride, batch, height, width, features)
    x = x.transpose(2, 3, 0, 4, 1, 5).reshape(batch, height * stride, width * stride, features)
    return x[:, : size[0], : size[1]]


@jax.custom_jvp
def _fusion_barrier(x: Array, scalar: Array) -> Array:
    """`x`, which operations that follow read from memory. `scalar` is any value that is not NaN.

    XLA's CPU backend drops optimisation barriers before it fuses, and recomputes a long sum of cheap products in each
    operation that reads it: half of a train step in the sums of a BatchNorm's gradient. It does not fuse across a loop,
    and this loop ends at once.
    """
    if not traced_for_cpus():
        return x
    initial = (scalar != scalar, x)  # false, which the compiler does not see
    result: tuple[Array, Array] = lax.while_loop(
        lambda carry: carry[0], lambda carry: (jnp.zeros_like(carry[0]), carry[1] * scalar), initial
    )
    return result[1]


_fusion_barrier.defjvp(lambda primals, tangents: (_fusion_barrier(*primals), tangents[0]))


def same_padding(side: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's `SAME` padding before and after a side: the odd pixel goes after."""
    total = max((-(-side // stride) - 1) * stride + window - side, 0)
    return total // 2, total - total // 2
