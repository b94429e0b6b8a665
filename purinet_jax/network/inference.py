"""What a network answers to images as they are read: pixels are normalised, and of what it predicts only that is
computed which is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array, export

from purinet_jax.network.model import Maps, PurNet, normalise


@jax.jit(static_argnums=0)
def saliency_maps(model: PurNet, variables: Mapping[str, Any], images: Array) -> Array:
    """Each image's finest map: uint8 RGB [batch, height, width, 3] → float32 [batch, height, width].

    Values are in [0, 1]. Since nothing else is returned, XLA computes neither the other levels' maps nor the
    auxiliary heads.
    """
    return jax.nn.sigmoid(_answers(model, variables, images).saliency[0][..., 0])


@jax.jit(static_argnums=0)
def finest_maps(model: PurNet, variables: Mapping[str, Any], images: Array) -> Maps:
    """The finest level of all that the network predicts, and no other: uint8 RGB [batch, height, width, 3] → `Maps`
    of one level each, or of none without attention."""
    return Maps(*(levels[:1] for levels in _answers(model, variables, images)))


@jax.jit(static_argnums=0)
def all_maps(model: PurNet, variables: Mapping[str, Any], images: Array) -> Maps:
    """All that the network predicts at every level: uint8 RGB [batch, height, width, 3] → `Maps`."""
    return _answers(model, variables, images)


def serialised(function: Callable[..., Any], *arguments: Any, platforms: Sequence[str]) -> bytes:
    """A traced function as `jax.export.deserialize` takes it.

    Args:
      function: arrays → arrays.
      arguments: their shapes and types; trees of them, too.
      platforms: what it shall run on, as JAX calls it.
    """
    setting = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, setting)
    # Operations know the line that they come from; the folders that it lies in are nobody's business.
    jax.config.update(setting, ".*/")
    try:
        return bytes(export.export(jax.jit(function), platforms=platforms)(*arguments).serialize())
    finally:
        jax.config.update(setting, before)


def _answers(model: PurNet, variables: Mapping[str, Any], images: Array) -> Maps:
    maps: Any = model.apply(variables, normalise(images, model.backbone.pixel_mean, model.backbone.pixel_std))
    return maps
