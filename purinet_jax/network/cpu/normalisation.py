"""The sums of batch normalisation with written-out gradients: XLA's CPU backend takes three times as long for the
gradients that automatic differentiation makes of them.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from purinet_jax.network.cpu.platform import traced_for_cpus
from purinet_jax.network.cpu.varying import vary_alike

STATISTICS = "batch_statistics"
"""The name of the averages over devices, which rematerialised blocks keep."""


def batch_moments(x: Array, axis_name: str | None = None) -> tuple[Array, Array]:
    """Mean and biased variance [channels] of `x` [batch, height, width, channels], over the devices of an axis too.

    In two passes, since E[x²] − E[x]² loses digits.
    """
    average = (lambda value: value) if axis_name is None else partial(lax.pmean, axis_name=axis_name)
    mean = checkpoint_name(average(pixel_mean(x)), STATISTICS)
    return mean, checkpoint_name(average(pixel_variance(*vary_alike(x, mean))), STATISTICS)


@jax.custom_vjp
def pixel_mean(x: Array) -> Array:
    """Mean over batch, height and width: [batch, height, width, channels] → [channels]."""
    return sum_over_pixels(x) / math.prod(x.shape[:-1])


def _pixel_mean_backward(x: Array, gradient: Array) -> tuple[Array]:
    return (jnp.broadcast_to(gradient / math.prod(x.shape[:-1]), x.shape),)


pixel_mean.defvjp(lambda x: (pixel_mean(x), x), _pixel_mean_backward)


@jax.custom_vjp
def pixel_variance(x: Array, mean: Array) -> Array:
    """Mean square of `x` − `mean` over batch, height and width: [batch, height, width, channels] → [channels]."""
    return sum_over_pixels(jnp.square(x - mean)) / math.prod(x.shape[:-1])


def _pixel_variance_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, mean = residuals
    x_gradient = (x - mean) * (2 * gradient / math.prod(x.shape[:-1]))
    return x_gradient, -2 * gradient * (pixel_mean(x) - mean)


pixel_variance.defvjp(lambda x, mean: (pixel_variance(x, mean), (x, mean)), _pixel_variance_backward)


@jax.custom_vjp
def scale_and_shift(x: Array, factor: Array, shift: Array) -> Array:
    """`x` [batch, height, width, channels] · `factor` + `shift`, both [channels]: computed in the wider dtype."""
    return (x.astype(jnp.promote_types(x.dtype, factor.dtype)) * factor + shift).astype(x.dtype)


def _scale_and_shift_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, factor = residuals
    wide = gradient.astype(jnp.promote_types(x.dtype, factor.dtype))
    sums = (sum_over_pixels(wide * x.astype(wide.dtype)), sum_over_pixels(wide))
    return (wide * factor).astype(x.dtype), sums[0].astype(factor.dtype), sums[1].astype(factor.dtype)


scale_and_shift.defvjp(
    lambda x, factor, shift: (scale_and_shift(x, factor, shift), (x, factor)), _scale_and_shift_backward
)


def sum_over_pixels(x: Array) -> Array:
    """[batch, height, width, channels] → [channels].

    On CPUs over the images elementwise, in at most eight parts since each is an operation to compile, and over the
    pixels as a matrix product: XLA's reduction of a fused expression takes up to five times as long.
    """
    if not traced_for_cpus():
        return x.sum((0, 1, 2))
    parts = x.reshape(math.gcd(len(x), 8), -1, x.shape[-1])
    pixels: Array = sum(parts[i] for i in range(len(parts)))  # type: ignore[assignment]
    return (jnp.ones((1, len(pixels)), x.dtype) @ pixels)[0]
