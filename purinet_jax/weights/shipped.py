"""The package's networks, files in this folder: weights, and the traced program that predicts one image of their size,
because tracing is the slowest part of a first prediction.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purinet_jax.errors import InputError
from purinet_jax.network.folding import Fold
from purinet_jax.weights.tensor_files import read_metadata, read_tensors

NETWORKS = ("context", "lite")
"""The names of the package's networks; the first is the default."""


def shipped_file(name: str) -> Path:
    """The weights of one of `NETWORKS`."""
    return Path(__file__).with_name(f"purnet_{name}.safetensors")


def traced_file(name: str) -> Path:
    """Its traced program; `scripts/trace_shipped.py` writes it again after the weights or the network change."""
    return Path(__file__).with_name(f"purnet_{name}.traced.safetensors")


def shipped_name(path: str | os.PathLike[str] | None) -> str | None:
    """Which of `NETWORKS` a path names, the first for `None`; `None` for a file or folder.

    Raises:
      InputError: one word that is neither one of `NETWORKS` nor a file or folder.
    """
    if path is None:
        return NETWORKS[0]
    path = Path(path)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return None
    if str(path) not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise InputError(f"{path}: no such file or folder, and not one of the package's networks: {known}")
    return str(path)


def weights_path(path: str | os.PathLike[str] | None) -> Path:
    """The weights of one of `NETWORKS` for its name, or for `None` those of the first; any other path as it is.

    Raises:
      InputError: as `shipped_name`.
    """
    name = shipped_name(path)
    return Path(path or "") if name is None else shipped_file(name)


class Shipped(NamedTuple):
    """The variables of one of `NETWORKS`, the model's configuration, and the side of its images in pixels."""

    variables: dict[str, Any]
    config: dict[str, Any]
    size: int


class Traced(NamedTuple):
    """A program for CPUs, serialised: folded variables and uint8 RGB [1, size, size, 3] → float32 [1, size, size]; and
    the folds that it expects."""

    program: bytes
    folds: tuple[Fold, ...]
    size: int


def load_shipped(name: str) -> Shipped:
    """Loads one of `NETWORKS` without the check of shapes in `load_file`, which takes as long as predicting."""
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
    """Loads the program of one of `NETWORKS`."""
    file = traced_file(name)
    metadata = read_metadata(file)
    folds = tuple(Fold(tuple(layer), tuple(norm), epsilon) for layer, norm, epsilon in json.loads(metadata["folds"]))
    return Traced(zlib.decompress(read_tensors(file)["program"].tobytes()), folds, int(metadata["size"]))
