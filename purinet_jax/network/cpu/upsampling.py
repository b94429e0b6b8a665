"""Learned and bilinear upsampling as one convolution and as matrix products."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from purinet_jax.network.cpu.convolution import convolution


@partial(jax.jit, static_argnums=2)
def transposed_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """Transposed convolution with a kernel of 2 · `stride`, cropped by `stride` / 2 on each side.

    Equals PyTorch's `conv_transpose2d(x, weight, stride=stride, padding=stride // 2)` with the weight as `kernel`
    [2·stride, 2·stride, in, out]: [batch, height, width, in] → [batch, stride · height, stride · width, out].

    Computed as one 2×2 convolution to stride² · out channels and depth to space: window w of the padded input holds all
    that outputs stride·w − stride/2 … stride·w + stride/2 − 1 depend on. XLA's CPU backend computes the weight gradient
    of a convolution with a dilated input on a slow path, in 27 to 70 times PyTorch's time; a padded convolution whose
    output is larger than its input takes that path too, so the padding is explicit.
    """
    batch, height, width, _ = x.shape
    features = kernel.shape[-1]
    # [tap, phase, tap, phase, in, out], taps reversed, → [tap, tap, in, phase · phase · out]
    taps = kernel.reshape(2, stride, 2, stride, -1, features)[::-1, :, ::-1]
    taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, -1, stride * stride * features)
    y = convolution(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), taps)
    y = y.reshape(batch, height + 1, width + 1, stride, stride, features).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, (height + 1) * stride, (width + 1) * stride, features)
    crop = stride // 2
    return y[:, crop : crop + height * stride, crop : crop + width * stride]


@partial(jax.jit, static_argnums=1)
def bilinear_upsampling(x: Array, factor: int) -> Array:
    """Bilinear interpolation with pixel centres aligned and edges repeated.

    [batch, height, width, channels] → [batch, factor · height, factor · width, channels], as one matrix product per
    axis: XLA's CPU backend takes ten times as long for the gradient of sums of shifted images.
    """

    def weights(side: int) -> Array:
        position = np.clip((np.arange(factor * side) + 0.5) / factor - 0.5, 0, side - 1)
        return jnp.asarray(np.maximum(1 - np.abs(position[:, None] - np.arange(side)), 0), x.dtype)

    x = jnp.einsum("Hh,bhwc->bHwc", weights(x.shape[1]), x)
    return jnp.einsum("Ww,bhwc->bhWc", weights(x.shape[2]), x)
