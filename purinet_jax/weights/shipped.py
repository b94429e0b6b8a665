"""What comes with the package, as files in this folder: weights, and beside them the program that answers one image of
their size, traced already, since tracing takes longer than all else that a first answer needs.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purinet_jax.errors import InputError
from purinet_jax.network.folding import Fold
from purinet_jax.weights.tensor_files import read_metadata, read_tensors, write_tensors

NETWORKS = ("context", "lite")
"""The package's networks by name; the first is used where none is named."""


def shipped_file(name: str) -> Path:
    """The weights of one of `NETWORKS`."""
    return Path(__file__).with_name(f"purnet_{name}.safetensors")


def traced_file(name: str) -> Path:
    """Their program; `scripts/trace_shipped.py` writes it anew, which is due when the weights or the network change."""
    return Path(__file__).with_name(f"purnet_{name}.traced.safetensors")


def shipped_name(path: str | os.PathLike[str] | None) -> str | None:
    """Which of `NETWORKS` is meant by what names weights: by None the first, by a name the one of that name. A path
    means none, and so does a name that is also a file or folder.

    Raises:
      InputError: one word that is neither one of `NETWORKS` nor there.
    """
    if path is None:
        return NETWORKS[0]
    path = Path(path)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return None
    if str(path) not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise InputError(f"{path}: no such file or folder, and no network of the package's, which are: {known}")
    return str(path)


class Shipped(NamedTuple):
    """The variables of one of `NETWORKS`, the model's configuration, and the side of its images in pixels."""

    variables: dict[str, Any]
    config: dict[str, Any]
    size: int


class Traced(NamedTuple):
    """What `traced_file` holds: a program, serialised, of folded variables and uint8 RGB [1, size, size, 3] → float32
    [1, size, size], for CPUs; and what is folded."""

    program: bytes
    folds: tuple[Fold, ...]
    size: int


def load_shipped(name: str) -> Shipped:
    """One of `NETWORKS`, not compared with the network's shapes as `load_file` does: tracing the network for that would
    take as long as predicting."""
    metadata = read_metadata(shipped_file(name))
    variables: dict[str, Any] = {}
    for path, tensor in read_tensors(shipped_file(name)).items():
        *modules, leaf = path.split("/")
        tree = variables
        for module in modules:
            tree = tree.setdefault(module, {})
        tree[leaf] = tensor.astype(np.float32)
    return Shipped(variables, json.loads(metadata["model"]), int(metadata["size"]))


def load_traced(name: str) -> Traced:
    """The program of one of `NETWORKS`."""
    file = traced_file(name)
    metadata = read_metadata(file)
    folds = tuple(Fold(tuple(layer), tuple(norm), epsilon) for layer, norm, epsilon in json.loads(metadata["folds"]))
    return Traced(zlib.decompress(read_tensors(file)["program"].tobytes()), folds, int(metadata["size"]))


def trace_shipped(name: str) -> Traced:
    """Traces one of `NETWORKS`."""
    import jax

    from purinet_jax.network.folding import apply_folds, find_folds
    from purinet_jax.network.inference import saliency_maps, serialised
    from purinet_jax.network.model import build_model

    variables, config, size = load_shipped(name)
    model = build_model(config)
    folds = find_folds(model, variables)

    def answer(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return saliency_maps(model, variables, images)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), apply_folds(folds, variables))
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    return Traced(serialised(answer, shapes, images, platforms=("cpu",)), folds, size)


def write_traced(name: str, traced: Traced) -> None:
    """Writes the program of one of `NETWORKS`."""
    program = np.frombuffer(zlib.compress(traced.program, 9), np.uint8)
    metadata = {"folds": json.dumps(traced.folds), "size": str(traced.size)}
    write_tensors(traced_file(name), {"program": program}, metadata)
