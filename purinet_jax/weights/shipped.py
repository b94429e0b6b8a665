"""What comes with the package, as files in this folder: weights, and beside them the program that answers one image of
their size, traced already, since tracing takes longer than all else that a first answer needs.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purinet_jax.network.folding import Fold
from purinet_jax.weights.tensor_files import read_metadata, read_tensors, write_tensors

SHIPPED = Path(__file__).with_name("purnet_lite.safetensors")
"""The weights that are used where none are named."""

TRACED = Path(__file__).with_name("purnet_lite.traced.safetensors")
"""Their program; `scripts/trace_shipped.py` writes it anew, which is due when the weights or the network change."""


class Shipped(NamedTuple):
    """The variables of `SHIPPED`, the model's configuration, and the side of its images in pixels."""

    variables: dict[str, Any]
    config: dict[str, Any]
    size: int


class Traced(NamedTuple):
    """The program of `TRACED`: serialised, of folded variables and uint8 RGB [1, size, size, 3] → float32 [1, size,
    size], for CPUs; and what is folded."""

    program: bytes
    folds: tuple[Fold, ...]
    size: int


def load_shipped() -> Shipped:
    """What `SHIPPED` holds, not compared with the network's shapes as `load_file` does: tracing the network for that
    would take as long as predicting."""
    metadata = read_metadata(SHIPPED)
    variables: dict[str, Any] = {}
    for name, tensor in read_tensors(SHIPPED).items():
        *modules, leaf = name.split("/")
        tree = variables
        for module in modules:
            tree = tree.setdefault(module, {})
        tree[leaf] = tensor.astype(np.float32)
    return Shipped(variables, json.loads(metadata["model"]), int(metadata["size"]))


def load_traced() -> Traced:
    """What `TRACED` holds."""
    metadata = read_metadata(TRACED)
    folds = tuple(Fold(tuple(layer), tuple(norm), epsilon) for layer, norm, epsilon in json.loads(metadata["folds"]))
    return Traced(zlib.decompress(read_tensors(TRACED)["program"].tobytes()), folds, int(metadata["size"]))


def trace_shipped() -> Traced:
    """Traces the network of `SHIPPED`, as `TRACED` holds it."""
    import jax

    from purinet_jax.network.folding import apply_folds, find_folds
    from purinet_jax.network.inference import saliency_maps, serialised
    from purinet_jax.network.model import build_model

    variables, config, size = load_shipped()
    model = build_model(config)
    folds = find_folds(model, variables)

    def answer(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return saliency_maps(model, variables, images)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), apply_folds(folds, variables))
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    return Traced(serialised(answer, shapes, images, platforms=("cpu",)), folds, size)


def write_traced(traced: Traced) -> None:
    """Writes `TRACED`."""
    program = np.frombuffer(zlib.compress(traced.program, 9), np.uint8)
    metadata = {"folds": json.dumps(traced.folds), "size": str(traced.size)}
    write_tensors(TRACED, {"program": program}, metadata)
