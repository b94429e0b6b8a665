"""VGG-16 (Simonyan and Zisserman 2015; torchvision's names). The authors released none: the levels are ours."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from purinet_jax.network.layers import Conv, max_pool, rematerialised


class Features(nn.Module):
    """torchvision's `features`: thirteen 3×3 convolutions with ReLUs, numbered with the pools between them."""

    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        levels = []
        for block, (width, convolutions, first) in enumerate(
            ((64, 2, 0), (128, 2, 5), (256, 3, 10), (512, 3, 17), (512, 3, 24))
        ):
            if block:
                x = max_pool(x, window=2, stride=2, padding=0)
            if block in (2, 4):
                levels.append(x)

            def row(
                module: nn.Module,
                x: Array,
                width: int = width,
                names: range = range(first, first + 2 * convolutions, 2),
                dilation: int = 2 if block == 4 else 1,
            ) -> Array:
                for name in names:
                    x = jax.nn.relu(Conv(width, 3, dilation=dilation, dtype=self.dtype, name=str(name))(x))
                return x

            x = rematerialised(row, self.remat)(self, x)
            if block >= 2:
                levels.append(x)
        return tuple(levels)


class VGG16(nn.Module):
    """VGG-16 → five levels of 128, 256, 512, 512 and 512 channels at strides 4, 4, 8, 16 and 16.

    Level 1 is the second pool, levels 2 and 3 the last convolutions of blocks 3 and 4, level 4 the fourth pool, level
    5 the last convolution of block 5, whose 3×3s are dilated by 2: the strides are those of the dilated ResNet-50.
    """

    axis_name: str | None = None  # no BatchNorm here: taken so that all extractors are built alike
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    strides: ClassVar[tuple[int, ...]] = (4, 4, 8, 16, 16)
    pixel_mean: ClassVar[tuple[float, ...]] = (0.4923, 0.4634, 0.3974)
    pixel_std: ClassVar[tuple[float, ...]] = (0.2737, 0.2659, 0.2836)

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, ...]:
        del train
        return Features(self.dtype, self.remat, name="features")(images)
