"""VGG-16 (Simonyan and Zisserman 2015; torchvision's names). The authors released none: the levels are ours."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
from jax import Array

from purinet_jax.network.cpu.pooling import max_pool
from purinet_jax.network.layers import BatchNorm, Conv, Norm, Remat, not_rematerialised

# (channels, convolutions, torchvision's index of the first)
BLOCKS = ((64, 2, 0), (128, 2, 5), (256, 3, 10), (512, 3, 17), (512, 3, 24))


class VGG16(nn.Module):
    """VGG-16 → five levels of 128, 256, 512, 512 and 512 channels at strides 4, 4, 8, 16 and 16.

    Level 1 is the second pool, levels 2 and 3 the last convolutions of blocks 3 and 4, level 4 the fourth pool, level
    5 the last convolution of block 5, whose 3×3s are dilated by 2: the strides are those of the dilated ResNet-50.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 4, 8, 16, 16)
    pixel_mean: ClassVar[tuple[float, ...]] = (0.4923, 0.4634, 0.3974)
    pixel_std: ClassVar[tuple[float, ...]] = (0.2737, 0.2659, 0.2836)

    @nn.compact
    def __call__(self, images: Array, norm: Norm = BatchNorm, remat: Remat = not_rematerialised) -> tuple[Array, ...]:
        return Features(remat, name="features")(images)


class Features(nn.Module):
    """torchvision's `features`: thirteen 3×3 convolutions with ReLUs, named by their indices among ReLUs and pools."""

    remat: Remat

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        levels = []
        for i, (width, convolutions, first) in enumerate(BLOCKS):
            if i:
                x = max_pool(x, window=2, stride=2, padding=0)
            if i in (2, 4):
                levels.append(x)
            names = range(first, first + 2 * convolutions, 2)
            block = partial(_block, width=width, dilation=2 if i == 4 else 1, names=names)
            x = self.remat(block)(self, x)
            if i >= 2:
                levels.append(x)
        return tuple(levels)


def _block(module: nn.Module, x: Array, width: int, dilation: int, names: range) -> Array:
    """Convolutions in `module` itself: torchvision's names have one level."""
    for name in names:
        x = jax.nn.relu(Conv(width, 3, dilation=dilation, name=str(name))(x))
    return x
