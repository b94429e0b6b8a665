"""The convolutions that layers are made of, with forms that are fast on CPUs (`purinet_jax.network.cpu.platform`)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, export, lax

from purinet_jax.network.cpu.platform import traced_for_cpus
from purinet_jax.network.cpu.winograd import (
    Padding,
    convolution_by_rows,
    kernel_gradient_by_rows,
    row_kernel_gradient,
    rows_in_a_tile,
)


def convolution(x: Array, kernel: Array, stride: int, dilation: int, padding: Padding) -> Array:
    """2-D convolution of `x` [batch, height, width, in] with `kernel` [height, width, in, out], NHWC."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def unit_stride_convolution(x: Array, kernel: Array, dilation: int, padding: Padding) -> Array:
    """`convolution` of stride 1 and a padding of at most dilation · (side − 1), in a form that is fast on CPUs.

    There it takes fewer multiplications (`purinet_jax.network.cpu.winograd`) where the image is large enough and
    there are many channels. Where not, its kernel's gradient is one convolution over the width alone per row of the
    kernel, with
    the image's rows counted into the batch: by itself that gradient is a convolution whose window is as large as the
    image and whose only contiguous axis is the batch, for which XLA's CPU backend takes 1.7 times as long.
    """
    tile = _tile(x, kernel, dilation, padding)
    if tile is None:
        return convolution(x, kernel, 1, dilation, padding)
    return convolution_by_rows(x, kernel, dilation, padding, tile)


def _tile(x: Array, kernel: Array, dilation: int, padding: Padding) -> int | None:
    """How many rows to compute at once by fewer multiplications; none where the straight form is to be had."""
    # What the sums lose in accuracy is more than 16-bit numbers have to spare. How many pixels there are
    # is not known of a program that is exported for any batch.
    if not traced_for_cpus() or x.dtype not in (jnp.float32, jnp.float64) or export.is_symbolic_dim(x.shape[0]):
        return None
    height, width = (
        side + sum(pad) - dilation * (taps - 1)
        for side, pad, taps in zip(x.shape[1:3], padding, kernel.shape, strict=False)
    )
    return rows_in_a_tile((len(x), height, width), kernel.shape, dilation)


def _unit_stride_forward(x: Array, kernel: Array, dilation: int, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return unit_stride_convolution(x, kernel, dilation, padding), (x, kernel)


def _unit_stride_backward(
    dilation: int, padding: Padding, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    if not traced_for_cpus():
        _, gradients = jax.vjp(lambda x, kernel: convolution(x, kernel, 1, dilation, padding), x, kernel)
        return gradients(gradient)
    tile = _tile(x, kernel, dilation, padding)
    if tile is None:
        (x_gradient,) = jax.vjp(lambda x: convolution(x, kernel, 1, dilation, padding), x)[1](gradient)
        return x_gradient, _kernel_gradient(x, gradient, kernel, dilation, padding)
    (top, bottom), (left, right) = (
        [dilation * (side - 1) - pad for pad in pads] for side, pads in zip(kernel.shape, padding, strict=False)
    )
    # The columns are padded by hand: a padded convolution whose output is larger than its input takes a slow path.
    gradient_padded = jnp.pad(gradient, ((0, 0), (0, 0), (left, right), (0, 0)))
    x_gradient = unit_stride_convolution(
        gradient_padded, kernel[::-1, ::-1].swapaxes(2, 3), dilation, ((top, bottom), (0, 0))
    )
    return x_gradient, kernel_gradient_by_rows(x, gradient, len(kernel), dilation, padding, tile)


unit_stride_convolution.defvjp(_unit_stride_forward, _unit_stride_backward)


def _kernel_gradient(x: Array, gradient: Array, kernel: Array, dilation: int, padding: Padding) -> Array:
    """The kernel's gradient, one of its rows after the other."""
    batch, height, width, _ = gradient.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = []
    for row in range(0, dilation * kernel.shape[0], dilation):
        x_row = x[:, row : row + height].reshape(batch * height, -1, x.shape[-1])
        rows.append(row_kernel_gradient(x_row, gradient.reshape(batch * height, width, -1), dilation))
    return jnp.stack(rows)
