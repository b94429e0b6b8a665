"""The variables that a run starts from: drawn from its seed, or another network's."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array
from ml_collections import ConfigDict

from purinet_jax.data.pairs import some
from purinet_jax.errors import InputError
from purinet_jax.network.layers import bilinear_kernel
from purinet_jax.network.model import PurNet, build_model, model_config
from purinet_jax.weights.convert import describe, load_file

logger = logging.getLogger(__name__)


def zeros(config: ConfigDict) -> dict[str, Any]:
    """Variables of the configured network to restore a checkpoint into."""
    shapes = jax.eval_shape(build_model(config.model).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes))


@jax.jit(static_argnums=0)
def _drawn_variables(model: PurNet, key: Array) -> Any:
    return model.init(key, jnp.zeros((1, 64, 64, 3)))


def initial_variables(config: ConfigDict, init: str | Path | None, partial: bool = False) -> dict[str, Any]:
    """Variables drawn from the seed, with those that `init` holds in their place; `partial`: those that fit."""
    # Read and compared first: a file that cannot be used is said before the network is compiled.
    weights, weights_config = ({}, {}) if init is None else load_file(init)
    # Without a device axis: nothing is averaged while parameters are drawn.
    model = build_model(config.model)
    target, source = (traverse_util.flatten_dict(tree) for tree in (zeros(config), weights))
    if partial and init is not None:
        source = _that_fit(source, target, init)
    for path in sorted(target.keys() & source.keys()):
        if target[path].shape != source[path].shape:
            raise InputError(
                f"{init}: {'/'.join(path)} is {source[path].shape}, the configured network's is {target[path].shape}"
            )
    surplus = sorted("/".join(path) for path in source.keys() - target.keys())
    if surplus or (weights_config.get("backbone", config.model.backbone) != config.model.backbone and not partial):
        raise InputError(
            f"{init}: {describe(weights_config)} does not fit {describe(model_config(model))}"
            + (f" ({len(surplus)} tensors too many, {surplus[0]} the first)" if surplus else "")
            + "; --partial takes what fits"
        )
    # Weights of the whole network leave nothing to draw, which takes compiling it.
    if target.keys() - source.keys():
        target = traverse_util.flatten_dict(dict(_drawn_variables(model, jax.random.key(config.seed))))
    if init is None:
        return traverse_util.unflatten_dict(target)
    target |= source
    if config.reset_upsampling:
        for path, value in target.items():
            if path[-1] == "transposed_kernel":
                target[path] = jnp.asarray(bilinear_kernel(value.shape[0], value.shape[2]))
    logger.info("%s: %d of %d tensors (%s)", init, len(source), len(target), describe(weights_config))
    return traverse_util.unflatten_dict(target)


def _that_fit(source: dict[Any, Any], target: dict[Any, Any], init: str | Path) -> dict[Any, Any]:
    """The tensors of `source` that have a place in `target`; the log names the others."""
    other_shapes = [path for path in sorted(source.keys() & target.keys()) if source[path].shape != target[path].shape]
    surplus, missing = sorted(source.keys() - target.keys()), sorted(target.keys() - source.keys())
    for paths, kind in (
        (other_shapes, "of another shape, so drawn anew"),
        (surplus, "without a place in the configured network"),
        (missing, "not in it, so drawn anew"),
    ):
        if paths:
            logger.warning("%s: --partial, %s: %s", init, kind, some(["/".join(x) for x in paths], "tensor"))
    fitting = {path: x for path, x in source.items() if path in target and path not in set(other_shapes)}
    if not fitting:
        raise InputError(f"{init}: none of its {len(source)} tensors fits the configured network")
    return fitting
