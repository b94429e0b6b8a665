"""MobileNetV2 (Sandler et al. 2018) with Keras' names, padding and BatchNorm epsilon."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from purinet_jax.network.layers import BatchNorm, Conv, DepthwiseConv, StridedConv, rematerialised

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


class MobileNetV2(nn.Module):
    """MobileNetV2, width 1, → four levels of 24, 32, 96 and 320 channels at strides 4, 8, 16 and 32.

    Each level is the last inverted residual of its stride (Keras' `block_2`, `block_5`, `block_12`, `block_16`).
    """

    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    pixel_mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    pixel_std: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, ...]:
        def norm(name: str, y: Array) -> Array:
            return BatchNorm(1e-3, axis_name=self.axis_name, dtype=self.dtype, name=name)(y, train)

        x = jax.nn.relu6(norm("bn_Conv1", StridedConv(32, self.dtype, name="Conv1")(images)))
        stride, number, levels = 2, 0, {}
        for expansion, features, blocks, first_stride in BLOCKS:
            for i in range(blocks):
                prefix = f"block_{number}_" if number else "expanded_conv_"
                block_stride = first_stride if i == 0 else 1

                def block(
                    module: nn.Module,
                    x: Array,
                    prefix: str = prefix,
                    expansion: int = expansion,
                    features: int = features,
                    stride: int = block_stride,
                ) -> Array:
                    y = x
                    if expansion > 1:
                        expanded = expansion * x.shape[-1]
                        y = Conv(expanded, 1, use_bias=False, dtype=self.dtype, name=prefix + "expand")(y)
                        y = jax.nn.relu6(norm(prefix + "expand_BN", y))
                    y = DepthwiseConv(3, stride, self.dtype, name=prefix + "depthwise")(y)
                    y = jax.nn.relu6(norm(prefix + "depthwise_BN", y))
                    y = Conv(features, 1, use_bias=False, dtype=self.dtype, name=prefix + "project")(y)
                    y = norm(prefix + "project_BN", y)
                    return x + y if y.shape == x.shape else y

                x = rematerialised(block, self.remat)(self, x)
                stride *= block_stride
                number += 1
                levels[stride] = x
        return tuple(levels[stride] for stride in self.strides)
