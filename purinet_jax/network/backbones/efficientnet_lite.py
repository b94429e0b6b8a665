"""EfficientNet-Lite (Tan and Le 2019, TensorFlow's version for phones): EfficientNet with ReLU6 and without
squeeze-and-excitation. Names are those of its PyTorch ports (`_conv_stem`, `_blocks.0._depthwise_conv` …); padding and
BatchNorm epsilon are TensorFlow's.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
from jax import Array

from purinet_jax.network.layers import BatchNorm, Conv, Norm, Remat, inverted_residual, not_rematerialised

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
NAMES = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite → four levels at strides 4, 8, 16 and 32, each the last block of its stride.

    Attributes:
      width: multiplies the channels, which are then rounded to multiples of 8: 1.0 in Lite0, 1.1 in Lite2.
      depth: multiplies the blocks of all rows but the first and last, rounded up: 1.0 in Lite0, 1.2 in Lite2.
    """

    width: float = 1.0
    depth: float = 1.0

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    pixel_mean: ClassVar[tuple[float, ...]] = (127 / 255,) * 3
    pixel_std: ClassVar[tuple[float, ...]] = (128 / 255,) * 3

    @nn.compact
    def __call__(self, images: Array, norm: Norm = BatchNorm, remat: Remat = not_rematerialised) -> tuple[Array, ...]:
        x = Conv(32, 3, 2, use_bias=False, same=True, name="_conv_stem")(images)
        x = jax.nn.relu6(norm(epsilon=1e-3, name="_bn0")(x))
        return InvertedResiduals(self.width, self.depth, norm, remat, name="_blocks")(x)


class InvertedResiduals(nn.Module):
    """All blocks, named by index, from the stem's [batch, height / 2, width / 2, 32] to the four levels."""

    width: float
    depth: float
    norm: Norm
    remat: Remat

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        block_class = self.remat(InvertedResidual)
        stride, index, levels = 2, 0, {}
        for row, (blocks, kernel_size, first_stride, expansion, channels) in enumerate(BLOCKS):
            if 0 < row < len(BLOCKS) - 1:
                blocks = math.ceil(blocks * self.depth)
            features = scaled_channels(channels, self.width)
            for i in range(blocks):
                block_stride = first_stride if i == 0 else 1
                x = block_class(features, expansion, kernel_size, block_stride, self.norm, name=str(index))(x)
                stride *= block_stride
                index += 1
                levels[stride] = x
        return tuple(levels[stride] for stride in EfficientNetLite.strides)


class InvertedResidual(nn.Module):
    """`inverted_residual` as a module."""

    features: int
    expansion: int
    kernel_size: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return inverted_residual(
            x, self.features, self.expansion, self.kernel_size, self.stride, self.norm, names=NAMES
        )


def scaled_channels(channels: int, width: float) -> int:
    """`channels` · `width` rounded to a multiple of 8, and up where rounding down removes more than a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
