"""Traces the package's networks and writes their programs next to their weights.

python scripts/trace_shipped.py
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from purinet_jax.network.config import ModelConfig
from purinet_jax.network.folding import apply_folds, find_folds
from purinet_jax.network.inference import saliency_maps, serialised
from purinet_jax.weights.shipped import NETWORKS, Traced, load_shipped, traced_file
from purinet_jax.weights.tensor_files import write_tensors


def trace_shipped(name: str) -> Traced:
    """Traces one of `NETWORKS` for one image of its size."""
    variables, config, size = load_shipped(name)
    model = ModelConfig.from_dict(config).build()
    folds = find_folds(model, variables)

    def predict(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return saliency_maps(model, variables, images)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), apply_folds(folds, variables))
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    return Traced(serialised(predict, shapes, images, platforms=("cpu",)), folds, size)


if __name__ == "__main__":
    for name in NETWORKS:
        traced = trace_shipped(name)
        program = np.frombuffer(zlib.compress(traced.program, 9), np.uint8)
        metadata = {"folds": json.dumps(traced.folds), "size": str(traced.size)}
        write_tensors(traced_file(name), {"program": program}, metadata)
        print(f"{traced_file(name)}: {traced_file(name).stat().st_size:,} bytes")
