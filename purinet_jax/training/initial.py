"""The variables that a run starts from: drawn from its seed, or another network's."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from ml_collections import ConfigDict

from purinet_jax.errors import InputError, summarise
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.layers import INITIALISERS
from purinet_jax.processes import check_same
from purinet_jax.weights.files import load_file

logger = logging.getLogger(__name__)


def shapes_of(config: ConfigDict) -> dict[str, Any]:
    """Returns shapes and dtypes of the configured network's variables."""
    model = ModelConfig.from_dict(config.model).build()  # without a device axis, as there is nothing to average
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return dict(jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image))


def draw(shapes: Any, seed: int) -> dict[str, Any]:
    """Returns a tensor for each leaf of `shapes`, which depends on its path, its shape and the seed alone.

    Drawn on the host: compiling one program that draws all variables can take minutes.

    Raises:
      InputError: a tensor has a name that `INITIALISERS` does not have.
    """

    def tensor(path: tuple[Any, ...], x: Any) -> Array:
        name = "/".join(path)
        if path[-1] not in INITIALISERS:
            raise InputError(f"{name}: no initial values for this name; known are {', '.join(INITIALISERS)}")
        generator = np.random.default_rng([seed % 2**64, *name.encode()])
        return jnp.asarray(INITIALISERS[path[-1]](generator, x.shape))

    return dict(traverse_util.path_aware_map(tensor, shapes))


def initial_variables(config: ConfigDict, init: str | Path | None, partial: bool = False) -> dict[str, Any]:
    """Returns the variables in `init`, and for those that it lacks ones drawn from the seed; the same in all processes.

    Raises:
      InputError: `init` cannot be read, or holds other tensors than the configured network; with `partial` those that
        fit are taken, and only if there are none the error is raised.
    """
    ours = ModelConfig.from_dict(config.model)
    target, source = traverse_util.flatten_dict(shapes_of(config)), {}
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
    if config.reset_upsampling:
        source = {path: value for path, value in source.items() if path[-1] != "transposed_kernel"}
    missing = {path: x for path, x in target.items() if path not in source}
    drawn = traverse_util.flatten_dict(draw(traverse_util.unflatten_dict(missing), config.seed))
    variables = drawn | source
    if jax.process_count() > 1:
        values = b"".join(np.asarray(variables[path]).tobytes() for path in sorted(variables))
        check_same({"the variables before the first step": values})
    return traverse_util.unflatten_dict(variables)


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
