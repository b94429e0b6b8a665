"""Inference as a StableHLO file for JAX: `jax.export` of the package's public functions, for any number of images.

    python examples/exported.py model.stablehlo

Network and weights become one program, which runs without this package and Flax.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import purinet_jax
from purinet_jax.network.inference import saliency_maps


def exported(model: purinet_jax.PurNet, variables: Any, size: int) -> bytes:
    """The serialised program uint8 [batch, size, size, 3] → float32 [batch, size, size] in [0, 1], for any batch."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    program = jax.export.export(jax.jit(lambda x: saliency_maps(model, variables, x)), platforms=("cpu", "cuda", "tpu"))
    return bytes(program(images).serialize())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="weights (default: the package's)")
    options = parser.parse_args(arguments)
    predictor = purinet_jax.load(options.checkpoint)
    options.output.write_bytes(exported(predictor.model, predictor.variables, predictor.size))

    # How to use the file:
    program = jax.export.deserialize(bytearray(options.output.read_bytes()))
    images = np.zeros((2, *program.in_avals[0].shape[1:]), np.uint8)
    print(
        f"{options.output}: {program.in_avals[0]} → {program.out_avals[0]}, {program.call(images).shape} for two images"
    )


if __name__ == "__main__":
    main()
