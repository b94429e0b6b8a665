"""Convolutions: matrix products for 1×1 kernels, and for unit strides forward and backward passes for CPUs."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from purinet_jax.network.cpu.platform import traced_for_cpus
from purinet_jax.network.cpu.varying import vary_alike
from purinet_jax.network.cpu.winograd import (
    LAYOUT,
    Padding,
    convolution_by_rows,
    kernel_gradient_by_rows,
    row_kernel_gradient,
    tile_rows,
)


def convolution(x: Array, kernel: Array, stride: int = 1, dilation: int = 1, padding: int | Padding = 0) -> Array:
    """2-D convolution of `x` [batch, height, width, in] with `kernel` [height, width, in, out].

    A 1×1 kernel is a matrix product of the pixels, which are one axis, so that its gradient needs no transpose; on CPUs
    with a stride, too, where that is 2.5 times as fast as XLA's convolution. (For GPUs, XLA of jax 0.11.2 ends the
    process when it compiles the float32 gradient of every `stride`-th pixel's product.) For a stride of 1, the padding
    may be at most dilation · (side − 1).
    """
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    if kernel.shape[:2] == (1, 1) and (stride == 1 or traced_for_cpus()):
        x = x[:, ::stride, ::stride]
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])
    if stride == 1:
        return unit_stride_convolution(*vary_alike(x, kernel), dilation, padding)
    return direct_convolution(x, kernel, stride, dilation, padding)


def direct_convolution(x: Array, kernel: Array, stride: int, dilation: int, padding: Padding) -> Array:
    """XLA's own convolution, as in `convolution`."""
    strides, dilations = (stride, stride), (dilation, dilation)
    return lax.conv_general_dilated(x, kernel, strides, padding, None, dilations, LAYOUT)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def unit_stride_convolution(x: Array, kernel: Array, dilation: int, padding: Padding) -> Array:
    """`convolution` of stride 1, on CPUs by Winograd's minimal filtering where that saves time (`winograd`).

    Elsewhere on CPUs, its kernel's gradient is one convolution over the width per row of the kernel, with the image's
    rows moved into the batch. XLA makes of that gradient a convolution whose window is as large as the image and whose
    only contiguous axis is the batch, which takes 1.7 times as long.
    """
    tile = tile_rows(x, kernel, dilation, padding)
    if tile is None:
        return direct_convolution(x, kernel, 1, dilation, padding)
    return convolution_by_rows(x, kernel, dilation, padding, tile)


def _unit_stride_backward(
    dilation: int, padding: Padding, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    tile = tile_rows(x, kernel, dilation, padding)
    if tile is None:
        _, pullback = jax.vjp(lambda x, kernel: direct_convolution(x, kernel, 1, dilation, padding), x, kernel)
        x_gradient, kernel_gradient = pullback(gradient)
        if traced_for_cpus():
            kernel_gradient = _kernel_gradient(x, gradient, len(kernel), dilation, padding)
        return x_gradient, kernel_gradient
    (top, bottom), (left, right) = (
        [dilation * (side - 1) - pad for pad in pads] for side, pads in zip(kernel.shape, padding, strict=False)
    )
    # Explicit padding of the columns: a padded convolution whose output is larger than its input takes a slow path.
    gradient_padded = jnp.pad(gradient, ((0, 0), (0, 0), (left, right), (0, 0)))
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    x_gradient = unit_stride_convolution(gradient_padded, flipped, dilation, ((top, bottom), (0, 0)))
    return x_gradient, kernel_gradient_by_rows(x, gradient, len(kernel), dilation, padding, tile)


unit_stride_convolution.defvjp(
    lambda x, kernel, *settings: (unit_stride_convolution(x, kernel, *settings), (x, kernel)), _unit_stride_backward
)


def _kernel_gradient(x: Array, gradient: Array, taps: int, dilation: int, padding: Padding) -> Array:
    """The kernel's gradient, one of its rows after the other."""
    batch, height, width, _ = gradient.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    gradient = gradient.reshape(batch * height, width, -1)
    rows = (
        row_kernel_gradient(x[:, row : row + height].reshape(batch * height, *x.shape[2:]), gradient, dilation)
        for row in range(0, dilation * taps, dilation)
    )
    return jnp.stack(list(rows))
