"""EfficientNet-Lite (Tan and Le 2019, in TensorFlow's version for phones): EfficientNet with ReLU6 and without
squeeze-and-excitation, under the names of its PyTorch ports (`_conv_stem`, `_blocks.0._depthwise_conv` …), with
TensorFlow's padding and BatchNorm epsilon.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from purinet_jax.network.layers import BatchNorm, Conv, DepthwiseConv, StridedConv, rematerialised

# (blocks, kernel size, stride of the first, expansion, channels) of width and depth 1, as in table 1 of the paper
BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite → four levels at strides 4, 8, 16 and 32, each the last block of its stride.

    Attributes:
      width: multiplies the channels, which are then rounded to multiples of 8: 1.0 in Lite0, 1.1 in Lite2.
      depth: multiplies the blocks of all rows but the first and last, rounded up: 1.0 in Lite0, 1.2 in Lite2.
      axis_name, dtype, remat: as in `purinet_jax.network.model.PurNet`.
    """

    width: float = 1.0
    depth: float = 1.0
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    pixel_mean: ClassVar[tuple[float, ...]] = (127 / 255,) * 3
    pixel_std: ClassVar[tuple[float, ...]] = (128 / 255,) * 3

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, ...]:
        x = StridedConv(32, self.dtype, name="_conv_stem")(images)
        x = BatchNorm(1e-3, axis_name=self.axis_name, dtype=self.dtype, name="_bn0")(x, train)
        blocks = InvertedResiduals(self.width, self.depth, self.axis_name, self.dtype, self.remat, name="_blocks")
        return blocks(jax.nn.relu6(x), train)


class InvertedResiduals(nn.Module):
    """All blocks, numbered through, from the stem's [batch, height / 2, width / 2, 32] to the four levels."""

    width: float
    depth: float
    axis_name: str | None
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, ...]:
        stride, number, levels = 2, 0, {}
        for row, (blocks, kernel_size, first_stride, expansion, channels) in enumerate(BLOCKS):
            if 0 < row < len(BLOCKS) - 1:
                blocks = math.ceil(blocks * self.depth)
            for i in range(blocks):
                block_stride = first_stride if i == 0 else 1
                residual = partial(
                    InvertedResidual,
                    scaled_channels(channels, self.width),
                    expansion,
                    kernel_size,
                    block_stride,
                    self.axis_name,
                    self.dtype,
                    name=str(number),
                )

                def block(module: nn.Module, x: Array, residual: Callable[..., nn.Module] = residual) -> Array:
                    return residual()(x, train)

                x = rematerialised(block, self.remat)(self, x)
                stride *= block_stride
                number += 1
                levels[stride] = x
        return tuple(levels[stride] for stride in EfficientNetLite.strides)


class InvertedResidual(nn.Module):
    """1×1 to `expansion` · in, depthwise (strided), 1×1 to `features` without activation, plus the input where it
    fits: [batch, height, width, in] → [batch, ceil(height / stride), ceil(width / stride), features]."""

    features: int
    expansion: int
    kernel_size: int
    stride: int
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def norm(name: str, y: Array) -> Array:
            return BatchNorm(1e-3, axis_name=self.axis_name, dtype=self.dtype, name=name)(y, train)

        y = x
        if self.expansion > 1:
            y = Conv(self.expansion * x.shape[-1], 1, use_bias=False, dtype=self.dtype, name="_expand_conv")(y)
            y = jax.nn.relu6(norm("_bn0", y))
        y = DepthwiseConv(self.kernel_size, self.stride, self.dtype, name="_depthwise_conv")(y)
        y = jax.nn.relu6(norm("_bn1", y))
        y = norm("_bn2", Conv(self.features, 1, use_bias=False, dtype=self.dtype, name="_project_conv")(y))
        return x + y if y.shape == x.shape else y


def scaled_channels(channels: int, width: float) -> int:
    """`channels` · `width` rounded to a multiple of 8, and up where that takes more than a tenth away."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
