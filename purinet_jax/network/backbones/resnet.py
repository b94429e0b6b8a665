"""ResNet-50 as the authors use it (He et al. 2016; torchvision's V1 layout and names, stride in the 3×3)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from purinet_jax.network.layers import BatchNorm, Conv, max_pool, rematerialised


class Bottleneck(nn.Module):
    """1×1, 3×3 (strided, dilated), 1×1 to 4 · width, plus the input: [batch, height, width, channels] each."""

    width: int
    stride: int
    dilation: int
    downsample: bool
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def norm(name: str, y: Array) -> Array:
            return BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=name)(y, train)

        def conv(name: str, features: int, kernel_size: int, stride: int, dilation: int, y: Array) -> Array:
            return Conv(features, kernel_size, stride, dilation, use_bias=False, dtype=self.dtype, name=name)(y)

        y = jax.nn.relu(norm("bn1", conv("conv1", self.width, 1, 1, 1, x)))
        y = jax.nn.relu(norm("bn2", conv("conv2", self.width, 3, self.stride, self.dilation, y)))
        y = norm("bn3", conv("conv3", 4 * self.width, 1, 1, 1, y))
        if self.downsample:
            x = Downsample(4 * self.width, self.stride, self.axis_name, self.dtype, name="downsample")(x, train)
        return jax.nn.relu(x + y)


class Downsample(nn.Module):
    """The strided 1×1 convolution and BatchNorm on a bottleneck's shortcut."""

    features: int
    stride: int
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(self.features, 1, self.stride, use_bias=False, dtype=self.dtype, name="0")(x)
        return BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="1")(x, train)


class Stem(nn.Module):
    """7×7 stride-2 convolution, BatchNorm, ReLU, 3×3 stride-2 max pool: the authors' `layer0`, level 1."""

    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(64, 7, 2, use_bias=False, dtype=self.dtype, name="0")(x)
        x = jax.nn.relu(BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="1")(x, train))
        return max_pool(x, window=3, stride=2, padding=1)


class Stage(nn.Module):
    """A row of bottlenecks; the first one carries the stride."""

    width: int
    blocks: int
    stride: int
    dilation: int
    axis_name: str | None
    dtype: DTypeLike
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(self.blocks):

            def block(module: nn.Module, x: Array, i: int = i) -> Array:
                stride = self.stride if i == 0 else 1
                bottleneck = Bottleneck(
                    self.width, stride, self.dilation, i == 0, self.axis_name, self.dtype, name=str(i)
                )
                return bottleneck(x, train)

            x = rematerialised(block, self.remat)(self, x)
        return x


class ResNet50(nn.Module):
    """ResNet-50 → five levels of 64, 256, 512, 1024 and 2048 channels.

    The released network keeps level 5 at stride 16 and dilates the 3×3s of `layer3` by 2 and of `layer4` by 4 (the
    defaults). `stage_strides=(1, 2, 2, 2)`, `dilations=(1, 1, 1, 1)` is the classification network.
    """

    stage_strides: tuple[int, ...] = (1, 2, 2, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    pixel_mean: ClassVar[tuple[float, ...]] = (0.4923, 0.4634, 0.3974)
    pixel_std: ClassVar[tuple[float, ...]] = (0.2737, 0.2659, 0.2836)

    @property
    def strides(self) -> tuple[int, ...]:
        strides = [4]
        for stride in self.stage_strides:
            strides.append(strides[-1] * stride)
        return tuple(strides)

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, ...]:

        def stem(module: nn.Module, images: Array) -> Array:
            return Stem(self.axis_name, self.dtype, name="layer0")(images, train)

        levels = [rematerialised(stem, self.remat)(self, images)]
        for i, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
            stage = Stage(
                width,
                blocks,
                self.stage_strides[i],
                self.dilations[i],
                self.axis_name,
                self.dtype,
                self.remat,
                name=f"layer{i + 1}",
            )
            levels.append(stage(levels[-1], train))
        return tuple(levels)
