"""Layers that the extractors and the three pyramids are built of, each equal to the authors' PyTorch layer.

Some are written in a form of their own because XLA's straight form is slow on CPUs (`transposed_convolution`,
`max_pool`, `depthwise_convolution`, the strided 1×1 in `Conv`); each docstring says what it equals. These and a few
others are `jax.jit`ted by themselves, so that they stand whole in a traced network, where `purinet_jax.export.graph`
finds them. Parameter names map one-to-one onto the authors': `kernel` [height, width, in, out] is `weight`,
`transposed_kernel` [height, width, in, out] is a transposed convolution's `weight`, `scale` and `slope` are the
`weight` of BatchNorm and PReLU. Parameters and BatchNorm statistics are float32; `dtype` is what the layer computes in.
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
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from purinet_jax.network.cpu.convolution import convolution, unit_stride_convolution
from purinet_jax.network.cpu.platform import traced_for_cpus

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


_STATISTICS = "batch_statistics"


def rematerialised(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    """A function `(module, *inputs)` whose inner values are computed anew in the backward pass where that is `wanted`.

    Only its inputs and results are kept in between, and BatchNorm's few statistics, so that devices do not average them
    twice. `train` and sizes are the function's own, not inputs: what is traced there cannot choose a path.
    """
    if not wanted:
        return function
    return nn.remat(function, policy=jax.checkpoint_policies.save_only_these_names(_STATISTICS))


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """What sums and outputs are kept in: float32, or float64 where a check of gradients asks for it."""
    return jnp.promote_types(dtype, jnp.float32)


def averaged_over(axis_name: str | None) -> str | None:
    """The device axis, or none where it has one device: XLA takes longer to compile hundreds of averages over a single
    device, which change nothing, than all else of a train step."""
    return None if axis_name is None or lax.axis_size(axis_name) == 1 else axis_name


class Conv(nn.Module):
    """Convolution, padded by `dilation * (kernel_size // 2)` on each side as PyTorch's networks are.

    [batch, height, width, in] → [batch, ceil(height / stride), ceil(width / stride), features].
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernel_size == 1:
            # A strided 1×1 convolution as slice and matrix product: 2.5 times faster on XLA's CPU backend.
            # Of two axes, lest the kernel's gradient begin with a transpose of all pixels.
            x = x[:, :: self.stride, :: self.stride]
            y = (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], self.features)
        else:
            pad = self.dilation * (self.kernel_size // 2)
            padding = ((pad, pad), (pad, pad))
            if self.stride == 1:
                y = unit_stride_convolution(x, kernel, self.dilation, padding)
            else:
                y = convolution(x, kernel, self.stride, self.dilation, padding)
        if self.use_bias:
            return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return add_folded_bias(self, y)


def add_folded_bias(convolution: nn.Module, y: Array) -> Array:
    """`y` [batch, height, width, channels], plus the bias that folding has left among the parameters of a convolution
    made without one (`purinet_jax.network.folding`), if it has."""
    if not convolution.has_variable("params", "bias"):
        return y
    bias: Array = convolution.get_variable("params", "bias")
    return y + bias.astype(y.dtype)


class BatchNorm(nn.Module):
    """BatchNorm over [batch, height, width], as PyTorch keeps it: the running variance is the unbiased one.

    The statistics are computed in float32. With `axis_name` they are those of the whole batch over all devices of
    that axis, when `train`. Without any variables of its own, that is, folded into the convolution before it
    (`purinet_jax.network.folding`), it is the identity, and cannot be trained.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if not (train or self.is_initializing() or _has_variables(self)):
            return x.astype(self.dtype)
        features = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        mean, var = running_mean.value, running_var.value
        if train:
            axis_name = None if self.is_initializing() else averaged_over(self.axis_name)
            wide = x.astype(at_least_float32(x.dtype))
            mean = pixel_mean(wide)
            if axis_name is not None:
                mean = lax.pmean(mean, axis_name)
            # Two passes: E[x²] − E[x]² loses the digits that the golden tests ask for.
            var = pixel_variance(wide, mean)
            if axis_name is not None:
                var = lax.pmean(var, axis_name)
            mean, var = checkpoint_name(mean, _STATISTICS), checkpoint_name(var, _STATISTICS)
            if not self.is_initializing():
                count = math.prod(x.shape[:-1]) * (1 if axis_name is None else lax.axis_size(axis_name))
                keep = self.momentum
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        factor = scale * lax.rsqrt(var + self.epsilon)
        return scale_and_shift(x.astype(self.dtype), factor, bias - mean * factor)


def _has_variables(norm: BatchNorm) -> bool:
    return norm.has_variable("params", "scale") or norm.has_variable("batch_stats", "mean")


# The parts of batch normalisation, with gradients written out: differentiated as they stand, XLA's CPU backend takes
# three times as long for the same sums.


@jax.custom_vjp
def pixel_mean(x: Array) -> Array:
    """Mean over batch, height and width: [batch, height, width, channels] → [channels]."""
    return _sum_over_pixels(x) / math.prod(x.shape[:-1])


def _pixel_mean_backward(x: Array, gradient: Array) -> tuple[Array]:
    return (jnp.broadcast_to(gradient / math.prod(x.shape[:-1]), x.shape),)


pixel_mean.defvjp(lambda x: (pixel_mean(x), x), _pixel_mean_backward)


@jax.custom_vjp
def pixel_variance(x: Array, mean: Array) -> Array:
    """Mean square of `x` − `mean` over batch, height and width: [batch, height, width, channels] → [channels]."""
    return _sum_over_pixels(jnp.square(x - mean)) / math.prod(x.shape[:-1])


def _pixel_variance_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, mean = residuals
    x_gradient = (x - mean) * (2 * gradient / math.prod(x.shape[:-1]))
    return x_gradient, -2 * gradient * (pixel_mean(x) - mean)


pixel_variance.defvjp(lambda x, mean: (pixel_variance(x, mean), (x, mean)), _pixel_variance_backward)


@jax.custom_vjp
def scale_and_shift(x: Array, factor: Array, shift: Array) -> Array:
    """`x` [batch, height, width, channels] · `factor` + `shift`, both [channels] and perhaps of a wider type."""
    return x * factor.astype(x.dtype) + shift.astype(x.dtype)


def _scale_and_shift_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, factor = residuals
    wide = gradient.astype(factor.dtype)
    sums = (_sum_over_pixels(wide * x.astype(factor.dtype)), _sum_over_pixels(wide))
    return (wide * factor).astype(x.dtype), *sums


scale_and_shift.defvjp(
    lambda x, factor, shift: (scale_and_shift(x, factor, shift), (x, factor)), _scale_and_shift_backward
)


def _sum_over_pixels(x: Array) -> Array:
    """[batch, height, width, channels] → [channels]. On CPUs over the images first, elementwise, and over the pixels as
    a matrix product: XLA's backend takes up to five times as long for the sum of what is computed on the fly."""

    def over_images(x: Array) -> Array:
        # in at most eight parts: each is an operation more to compile
        parts = x.reshape(math.gcd(len(x), 8), -1, x.shape[-1])
        pixels: Array = sum(parts[i] for i in range(len(parts)))  # type: ignore[assignment]
        return (jnp.ones((1, len(pixels)), x.dtype) @ pixels)[0]

    return over_images(x) if traced_for_cpus() else x.sum((0, 1, 2))


class PReLU(nn.Module):
    """x where x ≥ 0, slope · x elsewhere; one slope for all channels, 0.25 at first (He et al. 2015)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return prelu(x, self.param("slope", nn.initializers.constant(0.25), (1,)).astype(self.dtype))


@jax.jit
def prelu(x: Array, slope: Array) -> Array:
    """x where x ≥ 0, `slope` · x elsewhere."""
    return jnp.where(x >= 0, x, slope * x)


def convolution_batchnorm_prelu(
    module: nn.Module, x: Array, index: int, features: int, kernel_size: int, train: bool
) -> Array:
    """Three layers of a sequence, numbered from `index` as in the authors' `nn.Sequential`, inside `module`."""
    norm = {"axis_name": module.axis_name, "dtype": module.dtype}
    dtype = norm["dtype"]
    x = Conv(features, kernel_size, dtype=dtype, name=str(index))(x)
    x = BatchNorm(**norm, name=str(index + 1))(x, train)
    return PReLU(dtype=dtype, name=str(index + 2))(x)


class CBP(nn.Module):
    """CBP(k, c) blocks of the paper in a row: k×k convolution with bias, BatchNorm, PReLU, one per kernel size.

    With `upsample` > 1 a transposed convolution follows (the authors' `feature_upscore3` and `4`).
    [batch, height, width, in] → [batch, upsample · height, upsample · width, channels].
    """

    channels: int
    kernel_sizes: tuple[int, ...]
    upsample: int = 1
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i, kernel_size in enumerate(self.kernel_sizes):
            x = convolution_batchnorm_prelu(self, x, 3 * i, self.channels, kernel_size, train)
        if self.upsample > 1:
            x = Upsample(self.upsample, dtype=self.dtype, name=str(3 * len(self.kernel_sizes)))(x)
        return x


def bilinear_kernel(size: int, channels: int) -> np.ndarray:
    """Bilinear interpolation as a transposed kernel [size, size, channels, channels], on the channel diagonal."""
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    axis = 1 - np.abs(np.arange(size) - center) / factor
    return (axis[:, None, None, None] * axis[:, None, None] * np.eye(channels)).astype(np.float32)


@partial(jax.jit, static_argnums=2)
def transposed_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """Transposed convolution with a kernel of 2·stride, cropped by stride/2 on each side.

    Equals PyTorch's `conv_transpose2d(x, weight, stride=stride, padding=stride // 2)`, `kernel` being its weight as
    [2·stride, 2·stride, in, out]: [batch, height, width, in] → [batch, stride · height, stride · width, out].

    Computed as one VALID 2×2 convolution to stride² · out channels and depth to space: window w of the padded input
    holds all that outputs stride·w − stride/2 … stride·w + stride/2 − 1 depend on. The form with an interior-padded
    input makes XLA's CPU backend take a slow path for the weight gradient, 27 to 70 times PyTorch's time.
    """
    batch, height, width, _ = x.shape
    features = kernel.shape[-1]
    # [tap, phase, tap, phase, in, out], taps reversed, → [tap, tap, in, phase · phase · out]
    taps = kernel.reshape(2, stride, 2, stride, -1, features)[::-1, :, ::-1]
    taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, -1, stride * stride * features)
    # Padded by hand: a padded convolution whose output is larger than its input is the slow path's other form.
    y = unit_stride_convolution(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), taps, 1, ((0, 0), (0, 0)))
    y = y.reshape(batch, height + 1, width + 1, stride, stride, features).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, (height + 1) * stride, (width + 1) * stride, features)
    crop = stride // 2
    return y[:, crop : crop + height * stride, crop : crop + width * stride]


class Upsample(nn.Module):
    """The authors' learned upsampling: a transposed convolution without bias, bilinear at first.

    `stride` is even. [batch, height, width, channels] → [batch, stride · height, stride · width, channels].
    """

    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, channels = 2 * self.stride, x.shape[-1]
        kernel = self.param(
            "transposed_kernel",
            lambda _, shape: jnp.asarray(bilinear_kernel(shape[0], shape[2])),
            (size, size, channels, channels),
        )
        return transposed_convolution(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


@partial(jax.jit, static_argnums=1)
def bilinear_upsampling(x: Array, factor: int) -> Array:
    """Bilinear interpolation without parameters: pixel centres aligned, edges repeated.

    [batch, height, width, channels] → [batch, factor · height, factor · width, channels]. Computed as one matrix
    product per axis: as sums of shifted images XLA's CPU backend takes ten times as long for the gradient.
    """

    def weights(side: int) -> Array:
        position = np.clip((np.arange(factor * side) + 0.5) / factor - 0.5, 0, side - 1)
        return jnp.asarray(np.maximum(1 - np.abs(position[:, None] - np.arange(side)), 0), x.dtype)

    x = jnp.einsum("Hh,bhwc->bHwc", weights(x.shape[1]), x)
    return jnp.einsum("Ww,bhwc->bhWc", weights(x.shape[2]), x)


class PredictionHead(nn.Module):
    """CBP(3), CBP(1) and a 1×1 convolution to one channel, then, with `upsample`, up to the image's size.

    `light` upsamples bilinearly instead of by a transposed convolution.
    The upsampled rows and columns beyond `size` are cropped: images whose sides `stride` does not divide have levels
    that are rounded up. Features [batch, height, width, channels] → logits [batch, *size, 1].
    """

    channels: int
    stride: int
    upsample: bool = True
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    light: bool = False

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], train: bool) -> Array:
        x = convolution_batchnorm_prelu(self, x, 0, self.channels, 3, train)
        x = convolution_batchnorm_prelu(self, x, 3, self.channels, 1, train)
        x = Conv(1, 1, dtype=self.dtype, name="6")(x)
        if self.upsample:
            x = bilinear_upsampling(x, self.stride) if self.light else Upsample(self.stride, self.dtype, name="7")(x)
            x = x[:, : size[0], : size[1]]
        return x


@partial(jax.jit, static_argnums=(1, 2, 3))
def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
    """Max pooling of non-negative `x` [batch, height, width, channels], sides divided by `stride` and rounded up.

    Equals PyTorch's `max_pool2d` behind a ReLU (with `ceil_mode=True` where sides are odd and windows even): zero
    padding is as good as minus infinity there. A maximum over
    shifted slices: its gradient is 6 times faster on XLA's CPU backend than `reduce_window`'s.
    """
    height, width = (-(-side // stride) for side in x.shape[1:3])
    after = [
        (out - 1) * stride + window - side - padding for out, side in zip((height, width), x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), (padding, max(after[0], 0)), (padding, max(after[1], 0)), (0, 0)))
    result = None
    for row in range(window):
        for column in range(window):
            part = x[
                :,
                row : row + (height - 1) * stride + 1 : stride,
                column : column + (width - 1) * stride + 1 : stride,
            ]
            result = part if result is None else jnp.maximum(result, part)
    assert result is not None
    return result


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """Depthwise convolution with TensorFlow's `SAME` padding, as shifted multiply-adds, one per place of the kernel.

    `x` [batch, height, width, channels], `kernel` [side, side, channels, 1]; the image's sides are divided by `stride`
    and rounded up. XLA's grouped convolution is slow on CPUs, and its gradients a hundred times slower.
    """
    return sum(part * kernel[tap][:, 0] for tap, part in _taps(x, kernel.shape[0], stride))  # type: ignore[return-value]


def _taps(x: Array, window: int, stride: int) -> list[tuple[tuple[int, int], Array]]:
    """The pixels of `x` [batch, height, width, channels] under each place of a square kernel of side `window`."""
    x = jnp.pad(x, ((0, 0), *(same_padding(side, window, stride) for side in x.shape[1:3]), (0, 0)))
    height, width = ((side - window) // stride * stride + 1 for side in x.shape[1:3])
    return [
        ((row, column), x[:, row : row + height : stride, column : column + width : stride])
        for row in range(window)
        for column in range(window)
    ]


def _depthwise_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_convolution(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals

    sums = [_sum_over_pixels(part * gradient) for _, part in _taps(x, kernel.shape[0], stride)]
    kernel_gradient = jnp.stack(sums).reshape(kernel.shape)
    x_gradient = _depthwise_transposed(gradient, kernel, stride, (x.shape[1], x.shape[2]))
    return _computed_once(x_gradient, kernel[0, 0, 0, 0]), kernel_gradient


depthwise_convolution.defvjp(_depthwise_forward, _depthwise_backward)


def _computed_once(x: Array, number: Array) -> Array:
    """`x`, which all that follows reads from memory. `number` is a scalar that is at hand and not NaN.

    XLA's CPU backend drops optimisation barriers before it fuses, and computes a long sum of cheap products anew in
    each operation that reads it: for the sums of a BatchNorm's gradient, half of a train step. What enters a loop is
    not fused with what leaves it, and this loop is left at once.
    """

    def through_loop(x: Array, number: Array) -> Array:
        left: tuple[Array, Array] = lax.while_loop(
            lambda carry: carry[0], lambda carry: (jnp.zeros((), bool), carry[1] * number), (number != number, x)
        )
        return left[1]

    return through_loop(x, number) if traced_for_cpus() else x


def _depthwise_transposed(gradient: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    """The transpose of `depthwise_convolution` in its image of `size`, one phase of rows and columns after the other:
    each is a sum of shifted products, as the convolution itself is."""
    window = kernel.shape[0]
    before = [same_padding(side, window, stride)[0] for side in size]
    height, width = (-(-side // stride) for side in size)
    gradient = jnp.pad(gradient, ((0, 0), (window, window), (window, window), (0, 0)))
    phases = [
        sum(
            kernel[row, column, :, 0] * gradient[:, top : top + height, left : left + width]
            for row in range((i + before[0]) % stride, window, stride)
            for column in range((j + before[1]) % stride, window, stride)
            for top in [window + (i + before[0] - row) // stride]
            for left in [window + (j + before[1] - column) // stride]
        )
        for i in range(stride)
        for j in range(stride)
    ]
    batch, features = gradient.shape[0], gradient.shape[-1]
    x = jnp.stack(phases, 0).reshape(stride, stride, batch, height, width, features)
    x = x.transpose(2, 3, 0, 4, 1, 5).reshape(batch, height * stride, width * stride, features)
    return x[:, : size[0], : size[1]]


def same_padding(side: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's `SAME` padding before and after a side: the odd pixel goes after."""
    total = max((-(-side // stride) - 1) * stride + window - side, 0)
    return total // 2, total - total // 2


class StridedConv(nn.Module):
    """3×3 stride-2 convolution with TensorFlow's `SAME` padding, without bias."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", he_normal, (3, 3, x.shape[-1], self.features))
        padding = (same_padding(x.shape[1], 3, 2), same_padding(x.shape[2], 3, 2))
        return add_folded_bias(self, convolution(x.astype(self.dtype), kernel.astype(self.dtype), 2, 1, padding))


class DepthwiseConv(nn.Module):
    """Depthwise convolution with TensorFlow's `SAME` padding, without bias."""

    kernel_size: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # fan-in is the window: the in axis of [height, width, channels, 1] is its last
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=-1, out_axis=-2)
        kernel = self.param("depthwise_kernel", init, (self.kernel_size, self.kernel_size, x.shape[-1], 1))
        y = depthwise_convolution(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        return add_folded_bias(self, y)
