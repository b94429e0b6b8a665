"""ResNet-50 as the authors use it (He et al. 2016; torchvision's V1 layout and names, stride in the 3×3)."""

from itertools import accumulate
from operator import mul
from typing import ClassVar

import flax.linen as nn
import jax
from jax import Array

from purinet_jax.network.cpu.pooling import max_pool
from purinet_jax.network.layers import BatchNorm, Conv, Norm, Remat, not_rematerialised


class Bottleneck(nn.Module):
    """1×1, 3×3 (strided, dilated), 1×1 to 4 · width, plus the input: [batch, height, width, channels] each."""

    width: int
    stride: int
    dilation: int
    downsample: bool
    norm: Norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Conv(self.width, 1, use_bias=False, name="conv1")(x)
        y = jax.nn.relu(self.norm(name="bn1")(y))
        y = Conv(self.width, 3, self.stride, self.dilation, use_bias=False, name="conv2")(y)
        y = jax.nn.relu(self.norm(name="bn2")(y))
        y = self.norm(name="bn3")(Conv(4 * self.width, 1, use_bias=False, name="conv3")(y))
        if self.downsample:
            x = Downsample(4 * self.width, self.stride, self.norm, name="downsample")(x)
        return jax.nn.relu(x + y)


class Downsample(nn.Module):
    """The strided 1×1 convolution and BatchNorm on a bottleneck's shortcut."""

    features: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.norm(name="1")(Conv(self.features, 1, self.stride, use_bias=False, name="0")(x))


class Stem(nn.Module):
    """7×7 stride-2 convolution, BatchNorm, ReLU, 3×3 stride-2 max pool: the authors' `layer0`, level 1."""

    norm: Norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(64, 7, 2, use_bias=False, name="0")(x)
        return max_pool(jax.nn.relu(self.norm(name="1")(x)), window=3, stride=2, padding=1)


class Stage(nn.Module):
    """A row of bottlenecks, the first of them with the stride."""

    width: int
    blocks: int
    stride: int
    dilation: int
    norm: Norm
    remat: Remat

    @nn.compact
    def __call__(self, x: Array) -> Array:
        block_class = self.remat(Bottleneck)
        for i in range(self.blocks):
            x = block_class(self.width, 1 if i else self.stride, self.dilation, i == 0, self.norm, name=str(i))(x)
        return x


class ResNet50(nn.Module):
    """ResNet-50 → five levels of 64, 256, 512, 1024 and 2048 channels.

    The released network keeps level 5 at stride 16 and dilates the 3×3s of `layer3` by 2 and of `layer4` by 4 (the
    defaults). `stage_strides=(1, 2, 2, 2)`, `dilations=(1, 1, 1, 1)` is the classification network.
    """

    stage_strides: tuple[int, ...] = (1, 2, 2, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)

    pixel_mean: ClassVar[tuple[float, ...]] = (0.4923, 0.4634, 0.3974)
    pixel_std: ClassVar[tuple[float, ...]] = (0.2737, 0.2659, 0.2836)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(accumulate(self.stage_strides, mul, initial=4))

    @nn.compact
    def __call__(self, images: Array, norm: Norm = BatchNorm, remat: Remat = not_rematerialised) -> tuple[Array, ...]:
        levels = [remat(Stem)(norm, name="layer0")(images)]
        stages = zip((64, 128, 256, 512), (3, 4, 6, 3), self.stage_strides, self.dilations, strict=True)
        for i, settings in enumerate(stages, 1):
            levels.append(Stage(*settings, norm, remat, name=f"layer{i}")(levels[-1]))
        return tuple(levels)
