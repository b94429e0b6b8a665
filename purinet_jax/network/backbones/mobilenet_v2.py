"""MobileNetV2 (Sandler et al. 2018) with Keras' names, padding and BatchNorm epsilon."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
from jax import Array

from purinet_jax.network.layers import BatchNorm, Conv, Norm, Remat, inverted_residual, not_rematerialised

# (expansion, output channels, blocks, stride of the first) as in table 2 of the paper
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
NAMES = ("expand", "expand_BN", "depthwise", "depthwise_BN", "project", "project_BN")


class MobileNetV2(nn.Module):
    """MobileNetV2, width 1, → four levels of 24, 32, 96 and 320 channels at strides 4, 8, 16 and 32.

    Each level is the last inverted residual of its stride (Keras' `block_2`, `block_5`, `block_12`, `block_16`).
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    pixel_mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    pixel_std: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)

    @nn.compact
    def __call__(self, images: Array, norm: Norm = BatchNorm, remat: Remat = not_rematerialised) -> tuple[Array, ...]:
        x = Conv(32, 3, 2, use_bias=False, same=True, name="Conv1")(images)
        x = jax.nn.relu6(norm(epsilon=1e-3, name="bn_Conv1")(x))
        stride, index, levels = 2, 0, {}
        for expansion, features, blocks, first_stride in BLOCKS:
            for i in range(blocks):
                prefix = f"block_{index}_" if index else "expanded_conv_"
                block_stride = first_stride if i == 0 else 1
                names = tuple(prefix + name for name in NAMES)
                block = partial(_block, settings=(features, expansion, 3, block_stride, norm, names))
                x = remat(block)(self, x)
                stride *= block_stride
                index += 1
                levels[stride] = x
        return tuple(levels[stride] for stride in self.strides)


def _block(module: nn.Module, x: Array, settings: tuple[Any, ...]) -> Array:
    """`inverted_residual` with layers in `module` itself: Keras' names have one level."""
    return inverted_residual(x, *settings)
