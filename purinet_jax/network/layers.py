"""Layers of the backbones and the three pyramids, each equal to the authors' PyTorch layer.

A layer computes in the dtype of its input; parameters and BatchNorm statistics are float32. Parameter names map
one-to-one onto the authors': `kernel` and `transposed_kernel` [height, width, in, out], `scale` and `slope` are the
`weight` of a convolution, transposed convolution, BatchNorm and PReLU. Functions with `jax.jit` appear by name in a
traced network, where `purinet_jax.export` translates them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from purinet_jax.network.cpu.convolution import convolution
from purinet_jax.network.cpu.depthwise import depthwise_convolution, same_padding
from purinet_jax.network.cpu.normalisation import STATISTICS, batch_moments, scale_and_shift
from purinet_jax.network.cpu.upsampling import bilinear_upsampling, transposed_convolution
from purinet_jax.network.cpu.varying import vary_alike, varying_axes

Norm = Callable[..., nn.Module]
"""What constructs a BatchNorm: `BatchNorm` with `train` and `axis_name` already set; takes `epsilon` and `name`."""

Remat = Callable[[Any], Any]
"""`rematerialised`, or `not_rematerialised`."""


def rematerialised(block: Any) -> Any:
    """A block, as a module class or a function of a module and arrays, whose inner values are recomputed in the
    backward pass. Only its inputs and outputs are kept, and BatchNorm's statistics, so that devices do not average
    them twice."""
    return nn.remat(block, policy=jax.checkpoint_policies.save_only_these_names(STATISTICS))


def not_rematerialised(block: Any) -> Any:
    """The block itself."""
    return block


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The dtype of sums and outputs: float32, or float64 where `dtype` is."""
    return jnp.promote_types(dtype, jnp.float32)


def averaged_over(axis_name: str | None, x: Array) -> str | None:
    """The device axis to average `x` over, or `None` where it has one device: hundreds of averages over one device
    change nothing, and take XLA longer to compile than the rest of a train step. `jax.shard_map` still asks for one of
    what varies."""
    if axis_name is None or (lax.axis_size(axis_name) == 1 and axis_name not in varying_axes(x)):
        return None
    return axis_name


def he_normal(source: Array | np.random.Generator, shape: tuple[int, ...], out_axes: int = 1) -> Any:
    """Draws a normal distribution of variance 2 / fan-in (He et al. 2015); the fan-in is the product of all sides of
    `shape` but the last `out_axes`."""
    deviation = math.sqrt(2 / math.prod(shape[:-out_axes]))
    if isinstance(source, np.random.Generator):
        return source.standard_normal(shape, np.float32) * np.float32(deviation)
    return jax.random.normal(source, shape, jnp.float32) * deviation


def bilinear_kernel(size: int, channels: int) -> np.ndarray:
    """Bilinear interpolation as a transposed kernel [size, size, channels, channels], on the channel diagonal."""
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    axis = 1 - np.abs(np.arange(size) - center) / factor
    return (axis[:, None, None, None] * axis[:, None, None] * np.eye(channels)).astype(np.float32)


def _constant(value: float) -> Callable[[Any, tuple[int, ...]], np.ndarray]:
    return lambda _, shape: np.full(shape, value, np.float32)


INITIALISERS: dict[str, Callable[[Any, tuple[int, ...]], Any]] = {
    "kernel": he_normal,
    "depthwise_kernel": partial(he_normal, out_axes=2),
    "transposed_kernel": lambda _, shape: bilinear_kernel(shape[0], shape[2]),
    "bias": _constant(0),
    "scale": _constant(1),
    "slope": _constant(0.25),
    "mean": _constant(0),
    "var": _constant(1),
}
"""What a tensor of each name starts from, given a JAX key, or a generator on the host, and its shape."""


def _parameter(layer: nn.Module, name: str, *shape: int) -> Array:
    """The layer's parameter, which starts from `INITIALISERS`."""
    value: Array = layer.param(name, lambda key: jnp.asarray(INITIALISERS[name](key, shape)))
    return value


class Conv(nn.Module):
    """Convolution: [batch, height, width, in] → [batch, ceil(height / stride), ceil(width / stride), features].

    Each side is padded by dilation · (kernel_size // 2), as in PyTorch's networks, or, with `same`, as TensorFlow's
    `SAME` pads it.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    same: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = _parameter(self, "kernel", self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = kernel.astype(x.dtype)
        padding: Any = self.dilation * (self.kernel_size // 2)
        if self.same:
            padding = tuple(same_padding(side, self.kernel_size, self.stride) for side in x.shape[1:3])
        y = convolution(x, kernel, self.stride, self.dilation, padding)
        if self.use_bias:
            return y + _parameter(self, "bias", self.features).astype(x.dtype)
        return _add_folded_bias(self, y)


class DepthwiseConv(nn.Module):
    """Depthwise convolution with TensorFlow's `SAME` padding, without bias."""

    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = _parameter(self, "depthwise_kernel", self.kernel_size, self.kernel_size, x.shape[-1], 1)
        return _add_folded_bias(self, depthwise_convolution(*vary_alike(x, kernel.astype(x.dtype)), self.stride))


def _add_folded_bias(layer: nn.Module, y: Array) -> Array:
    """`y` plus the bias that `purinet_jax.network.folding` has added to a convolution defined without one, if any."""
    if not layer.has_variable("params", "bias"):
        return y
    bias: Array = layer.get_variable("params", "bias")
    return y + bias.astype(y.dtype)


class BatchNorm(nn.Module):
    """BatchNorm over [batch, height, width]; the running variance is the unbiased one, as in PyTorch.

    Statistics are computed in float32, in training over all devices of `axis_name`. Without variables, that is, folded
    into the convolution before it (`purinet_jax.network.folding`), it is the identity and cannot be trained.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    train: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        folded = not (self.has_variable("params", "scale") or self.has_variable("batch_stats", "mean"))
        if folded and not (self.train or self.is_initializing()):
            return x
        scale, bias = (_parameter(self, name, x.shape[-1]) for name in ("scale", "bias"))
        running_mean, running_var = (
            self.variable("batch_stats", name, lambda name: jnp.asarray(INITIALISERS[name](None, x.shape[-1:])), name)
            for name in ("mean", "var")
        )
        mean, var = running_mean.value, running_var.value
        if self.train:
            axis_name = None if self.is_initializing() else averaged_over(self.axis_name, x)
            mean, var = batch_moments(x.astype(at_least_float32(x.dtype)), axis_name)
            if not self.is_initializing():
                count = math.prod(x.shape[:-1]) * (1 if axis_name is None else lax.axis_size(axis_name))
                unbiased = var * (count / max(count - 1, 1))
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    updated = self.momentum * running.value + (1 - self.momentum) * new
                    running.value = updated.astype(running.value.dtype)
        factor = scale * lax.rsqrt(var + self.epsilon)
        return scale_and_shift(*vary_alike(x, factor, bias - mean * factor))


class PReLU(nn.Module):
    """x where x ≥ 0, slope · x elsewhere; one slope for all channels, 0.25 at first (He et al. 2015)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return prelu(x, _parameter(self, "slope", 1).astype(x.dtype))


@jax.jit
def prelu(x: Array, slope: Array) -> Array:
    """x where x ≥ 0, `slope` · x elsewhere."""
    return jnp.where(x >= 0, x, slope * x)


class Upsample(nn.Module):
    """The authors' learned upsampling: a transposed convolution without bias, bilinear at first.

    `stride` is even. [batch, height, width, channels] → [batch, stride · height, stride · width, channels].
    """

    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, channels = 2 * self.stride, x.shape[-1]
        kernel = _parameter(self, "transposed_kernel", size, size, channels, channels)
        return transposed_convolution(x, kernel.astype(x.dtype), self.stride)


class CBP(nn.Module):
    """CBP(k, c) blocks of the paper in a row: k×k convolution with bias, BatchNorm, PReLU, one per kernel size.

    With `upsample` > 1, a transposed convolution follows (the authors' `feature_upscore3` and `4`), or bilinear
    interpolation if `light`. [batch, height, width, in] → [batch, upsample · height, upsample · width, channels].
    """

    channels: int
    kernel_sizes: tuple[int, ...]
    upsample: int = 1
    light: bool = False
    norm: Norm = BatchNorm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _cbps(x, self.channels, self.kernel_sizes, self.norm)
        if self.upsample == 1:
            return x
        if self.light:
            return bilinear_upsampling(x, self.upsample)
        return Upsample(self.upsample, name=str(3 * len(self.kernel_sizes)))(x)


class PredictionHead(nn.Module):
    """CBP(3), CBP(1) and a 1×1 convolution to one channel; then, unless `size` is `None`, upsampling to the image.

    `light` upsamples bilinearly instead of by a transposed convolution. Levels round their sides up, so the rows and
    columns beyond `size` are cropped. Features [batch, height, width, channels] → logits [batch, *size, 1].
    """

    channels: int
    stride: int
    size: tuple[int, int] | None
    light: bool = False
    norm: Norm = BatchNorm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _cbps(x, self.channels, (3, 1), self.norm)
        x = Conv(1, 1, name="6")(x)
        if self.size is None:
            return x
        x = bilinear_upsampling(x, self.stride) if self.light else Upsample(self.stride, name="7")(x)
        return x[:, : self.size[0], : self.size[1]]


def _cbps(x: Array, channels: int, kernel_sizes: tuple[int, ...], norm: Norm) -> Array:
    """CBP blocks within the calling module, with layers named by index as in the authors' `nn.Sequential`."""
    for i, kernel_size in enumerate(kernel_sizes):
        x = Conv(channels, kernel_size, name=f"{3 * i}")(x)
        x = norm(name=f"{3 * i + 1}")(x)
        x = PReLU(name=f"{3 * i + 2}")(x)
    return x


def inverted_residual(
    x: Array, features: int, expansion: int, kernel_size: int, stride: int, norm: Norm, names: tuple[str, ...]
) -> Array:
    """1×1 convolution to `expansion` · in channels, depthwise convolution (strided), 1×1 to `features` without
    activation, plus the input where shapes agree (Sandler et al. 2018), within the calling module.

    [batch, height, width, in] → [batch, ceil(height / stride), ceil(width / stride), features]. `names` are those of
    the three convolutions, each followed by its BatchNorm's; the first does not exist for an expansion of 1.
    """
    expand, expand_norm, depthwise, depthwise_norm, project, project_norm = names
    y = x
    if expansion > 1:
        y = Conv(expansion * x.shape[-1], 1, use_bias=False, name=expand)(y)
        y = jax.nn.relu6(norm(epsilon=1e-3, name=expand_norm)(y))
    y = DepthwiseConv(kernel_size, stride, name=depthwise)(y)
    y = jax.nn.relu6(norm(epsilon=1e-3, name=depthwise_norm)(y))
    y = norm(epsilon=1e-3, name=project_norm)(Conv(features, 1, use_bias=False, name=project)(y))
    return x + y if y.shape == x.shape else y
