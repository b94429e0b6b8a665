"""The weights that come with the package: files in this folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from purinet_jax.weights.tensor_files import read_metadata, read_tensors

SHIPPED = Path(__file__).with_name("purnet_lite.safetensors")
"""The weights that are used where none are named."""


def load_shipped() -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and model configuration of `SHIPPED`, not compared with the network's shapes as `load_file` does:
    tracing the network for that would take as long as predicting."""
    config = json.loads(read_metadata(SHIPPED)["model"])
    tensors = read_tensors(SHIPPED)
    variables = unflatten_dict({tuple(name.split("/")): tensor.astype(np.float32) for name, tensor in tensors.items()})
    return variables, config
