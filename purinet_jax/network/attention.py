"""The two attentions of the purificatory mechanism as pure functions of features, without parameters."""

import jax
import jax.numpy as jnp
from jax import Array

from purinet_jax.network.layers import at_least_float32

_MAXIMUM_SCALED = 10.0


def promotion_attention(features: Array, scaled: bool = False) -> Array:
    """Promotion attention: spatial softmax of each channel × channel softmax of the spatial mean (paper, III-B).

    Args:
      features: [batch, height, width, channels], any float dtype.
      scaled: multiply each softmax by its length, so that the attention's mean is 1 and not
        1 / (height · width · channels), and bound the attention by 10, so that a few pixels do not outweigh all others.
        The released form averages 1e-6, which leaves `A · f + f` equal to f.

    Returns:
      [batch, height, width, channels], positive, in the features' dtype; computed in float32.
    """
    wide = features.astype(at_least_float32(features.dtype))
    spatial = jax.nn.softmax(wide, axis=(1, 2))
    channel = jax.nn.softmax(wide.mean((1, 2), keepdims=True), axis=-1)
    if scaled:
        _, height, width, channels = features.shape
        attention = jnp.minimum(spatial * (height * width) * channel * channels, _MAXIMUM_SCALED)
    else:
        attention = spatial * channel
    return attention.astype(features.dtype)


def rectification_attention(appearance: Array, error: Array) -> Array:
    """Rectification attention: tanh of the difference between error and appearance features (paper, III-C).

    Args:
      appearance: [batch, height, width, channels], the features g that the rectified map is predicted from.
      error: the same shape, the features of the error branch.

    Returns:
      [batch, height, width, channels] in (−1, 1), in the arguments' dtype.
    """
    return jnp.tanh(error - appearance)
