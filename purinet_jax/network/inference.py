"""Forward passes of images as they are read: pixels are normalised, and only the requested outputs are computed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array, export

from purinet_jax.network.model import Maps, PurNet, normalise


@jax.jit(static_argnums=0)
def saliency_maps(model: PurNet, variables: Mapping[str, Any], images: Array) -> Array:
    """Each image's finest map: uint8 RGB [batch, height, width, 3] → float32 [batch, height, width] in [0, 1].

    Only this map is returned, so XLA computes neither the other levels' maps nor the auxiliary heads.
    """
    return jax.nn.sigmoid(_maps(model, variables, images).saliency[0][..., 0])


@jax.jit(static_argnums=0)
def finest_maps(model: PurNet, variables: Mapping[str, Any], images: Array) -> Maps:
    """The finest level of all predictions: uint8 RGB [batch, height, width, 3] → `Maps` of one level each, or of none
    where the network lacks that attention."""
    return Maps(*(levels[:1] for levels in _maps(model, variables, images)))


@jax.jit(static_argnums=0)
def all_maps(model: PurNet, variables: Mapping[str, Any], images: Array) -> Maps:
    """The predictions of every level: uint8 RGB [batch, height, width, 3] → `Maps`."""
    return _maps(model, variables, images)


def _maps(model: PurNet, variables: Mapping[str, Any], images: Array) -> Maps:
    maps: Any = model.apply(variables, normalise(images, model.backbone.pixel_mean, model.backbone.pixel_std))
    return maps


def serialised(function: Callable[..., Any], *arguments: Any, platforms: Sequence[str]) -> bytes:
    """A traced function in the form that `jax.export.deserialize` takes.

    Args:
      function: arrays → arrays.
      arguments: their shapes and dtypes; trees of them, too.
      platforms: the platforms it is to run on, by JAX's names.
    """
    setting = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, setting)
    jax.config.update(setting, ".*/")  # operations record their source files: without the private folders
    try:
        return bytes(export.export(jax.jit(function), platforms=platforms)(*arguments).serialize())
    finally:
        jax.config.update(setting, before)
