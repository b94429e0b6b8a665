"""What variables a network has: their paths and shapes, and how a file's tensors differ from them.

Variables are `{"params": …, "batch_stats": …}`, nested dictionaries whose keys are the authors' names split at the
dots. The backbone's are below `backbone`, a word that the authors' names do not have.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from purinet_jax.errors import InputError
from purinet_jax.network.config import ModelConfig
from purinet_jax.weights.untrusted import printable

COUNT = "num_batches_tracked"
"""PyTorch's name of the number of batches that a BatchNorm has seen: an int64 scalar that inference does not use. Flax
has none, so this package's files keep it apart from the variables, for `to_authors`."""

_COLLECTIONS = ("params", "batch_stats")
_NAMES_IN_A_MESSAGE = 5

Path = tuple[str, ...]


@dataclass(frozen=True)
class BackboneConfig:
    """What a file of a backbone alone says: its name in `BACKBONES`.

    Raises:
      InputError: there is no such backbone.
    """

    backbone: str

    def __post_init__(self) -> None:
        ModelConfig(self.backbone)

    def to_dict(self) -> dict[str, Any]:
        """The settings, as `config_from_dict` takes them and JSON can hold them."""
        return {"backbone": self.backbone, "part": "backbone"}

    def describe(self) -> str:
        """The network in words, for messages."""
        return f"{self.backbone} alone"


Config = ModelConfig | BackboneConfig
"""What a file of weights says of its network."""


def config_from_dict(settings: Mapping[str, Any]) -> Config:
    """The configuration that a file's JSON holds.

    Raises:
      InputError: a setting is unknown, or has another type or value; the message names it.
    """
    if "part" not in settings:
        return ModelConfig.from_dict(settings)
    unknown = sorted(settings.keys() - {"backbone", "part"})
    if unknown:
        raise InputError(f"model.{printable(unknown[0])}: no such setting")
    if settings["part"] != "backbone":
        raise InputError(f"model.part: {settings['part']!r} is not 'backbone'")
    return BackboneConfig(settings.get("backbone", ""))


@functools.lru_cache(maxsize=8)  # tracing a network takes a second
def variable_shapes(config: Config) -> dict[Path, tuple[int, ...]]:
    """The shape of every variable of a network or backbone, by its path."""
    alone = isinstance(config, BackboneConfig)
    model = (ModelConfig(config.backbone, attention=()) if isinstance(config, BackboneConfig) else config).build()
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)  # their size does not matter
    leaves = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images))
    return {
        path: leaf.shape
        for path, leaf in leaves.items()
        if path[0] in _COLLECTIONS and (path[1] == "backbone" or not alone)
    }


def authors_modules(path: Sequence[str]) -> list[str]:
    """The names of the modules that contain a variable, as the authors have them."""
    return list(path[2:-1] if path[1] == "backbone" else path[1:-1])


def flattened(variables: Mapping[str, Any]) -> dict[Path, np.ndarray]:
    """The leaves of `params` and `batch_stats` by path; other collections are left out."""
    kept = {collection: variables[collection] for collection in _COLLECTIONS if collection in variables}
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(kept).items()}


def nested(leaves: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    """The variables of these leaves, with both collections even if empty."""
    return {collection: {} for collection in _COLLECTIONS} | unflatten_dict(dict(leaves))


def check_tensors(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compares tensors with the shapes that a network has; counts (`COUNT`) are integers, all others floating.

    Raises:
      InputError: tensors are missing, surplus, or of another shape or type; the message names the first of each.
    """
    missing = [name for name in shapes if name not in tensors]
    surplus = [name for name in tensors if name not in shapes]
    misshapen = []
    for name in (name for name in shapes if name in tensors):
        tensor, counts = tensors[name], COUNT in name
        if tensor.shape != shapes[name]:
            misshapen.append(f"{name}: {tensor.shape} instead of {shapes[name]}")
        elif not jnp.issubdtype(tensor.dtype, jnp.integer if counts else jnp.floating):
            misshapen.append(f"{name}: {tensor.dtype} instead of {'an integer' if counts else 'a floating'} type")
    kinds = (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
    problems = [f"{len(names):,} {kind} ({first_names(names)})" for kind, names in kinds if names]
    if problems:
        raise InputError(", ".join(problems))


def first_names(names: Iterable[str]) -> str:
    """Names for a message, the first few of many."""
    names = list(names)
    more = len(names) - _NAMES_IN_A_MESSAGE
    return ", ".join(map(printable, names[:_NAMES_IN_A_MESSAGE])) + (f" and {more:,} more" if more > 0 else "")
