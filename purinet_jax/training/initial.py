"""The variables that a run starts from: drawn from its seed, or another network's."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array
from ml_collections import ConfigDict

from purinet_jax.errors import InputError, summarise
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.layers import bilinear_kernel
from purinet_jax.network.model import PurNet
from purinet_jax.weights.files import load_file

logger = logging.getLogger(__name__)


def zeros(config: ConfigDict) -> dict[str, Any]:
    """Returns variables of the configured network, all zero, to restore a checkpoint into."""
    model = ModelConfig.from_dict(config.model).build()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes))


@jax.jit(static_argnums=0)
def _drawn_variables(model: PurNet, key: Array) -> Any:
    return model.init(key, jnp.zeros((1, 64, 64, 3)))


def initial_variables(config: ConfigDict, init: str | Path | None, partial: bool = False) -> dict[str, Any]:
    """Returns the variables in `init`, and for those that it lacks ones drawn from the seed.

    Raises:
      InputError: `init` cannot be read, or holds other tensors than the configured network; with `partial` those that
        fit are taken, and only if there are none the error is raised.
    """
    ours = ModelConfig.from_dict(config.model)
    model = ours.build()  # without a device axis, as there is nothing to average
    target, source = traverse_util.flatten_dict(zeros(config)), {}
    if init is not None:
        weights, theirs = load_file(init)
        source = traverse_util.flatten_dict(weights)
        if partial:
            source = _fitting(source, target, init)
        for path in sorted(target.keys() & source.keys()):
            if target[path].shape != source[path].shape:
                raise InputError(
                    f"{init}: {'/'.join(path)} is {source[path].shape}, the configured network's is "
                    f"{target[path].shape}"
                )
        surplus = sorted("/".join(path) for path in source.keys() - target.keys())
        if surplus or (theirs.backbone != ours.backbone and not partial):
            tensors = f" ({len(surplus)} tensors too many, {surplus[0]} the first)" if surplus else ""
            raise InputError(
                f"{init}: {theirs.describe()} does not fit {ours.describe()}{tensors}; --partial takes what fits"
            )
        logger.info("%s: %d of %d tensors (%s)", init, len(source), len(target), theirs.describe())
    if target.keys() - source.keys():  # otherwise there is no need to compile the network
        target = traverse_util.flatten_dict(dict(_drawn_variables(model, jax.random.key(config.seed))))
    target |= source
    if init is not None and config.reset_upsampling:
        for path, value in target.items():
            if path[-1] == "transposed_kernel":
                target[path] = jnp.asarray(bilinear_kernel(value.shape[0], value.shape[2]))
    return traverse_util.unflatten_dict(target)


def _fitting(source: dict[Any, Any], target: dict[Any, Any], init: str | Path) -> dict[Any, Any]:
    """The tensors of `source` that `target` has in the same shape; the others are named in the log."""
    common = sorted(source.keys() & target.keys())
    other_shapes = [path for path in common if source[path].shape != target[path].shape]
    for paths, kind in (
        (other_shapes, "of another shape, drawn from the seed"),
        (sorted(source.keys() - target.keys()), "not in the configured network"),
        (sorted(target.keys() - source.keys()), "missing, drawn from the seed"),
    ):
        if paths:
            logger.warning("%s: --partial, %s: %s", init, kind, summarise(["/".join(x) for x in paths], "tensor"))
    fitting = {path: source[path] for path in common if path not in other_shapes}
    if not fitting:
        raise InputError(f"{init}: none of its {len(source)} tensors fits the configured network")
    return fitting
