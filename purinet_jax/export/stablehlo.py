"""Export to StableHLO by `jax.export`: one file for CPUs, NVIDIA's GPUs and TPUs, run by JAX."""

import jax
import jax.numpy as jnp
from jax import Array, export
from jax.extend.core import jaxpr_as_fun

from purinet_jax.export.tracing import traced_map
from purinet_jax.network.inference import serialised
from purinet_jax.prediction.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms that an exported program runs on, by JAX's names."""

_PROGRAM = """\
import jax
import numpy as np
from jax import export
from PIL import Image

network = jax.jit(export.deserialize(bytearray(open({file!r}, "rb").read())).call)
image = Image.open("photo.jpg").convert("RGB")
square = np.asarray(image.resize(({size}, {size}), Image.Resampling.BILINEAR))
saliency = np.asarray(network(square[None]))[0]  # [{size}, {size}], from 0 to 1
Image.fromarray(np.uint8(255 * saliency + 0.5)).resize(image.size, Image.Resampling.BILINEAR).save("map.png")
"""


def export_stablehlo(predictor: Predictor) -> bytes:
    """Returns a predictor's network with its weights as a program for `jax.export.deserialize`.

    The program maps uint8 RGB [batch, size, size, 3], images resized to the predictor's size, to float32 [batch, size,
    size] in [0, 1], the finest map, for any batch.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, predictor.size, predictor.size, 3), jnp.uint8)
    jaxpr, parameters = traced_map(predictor, images)
    finest_map = jaxpr_as_fun(jaxpr)

    def maps(images: Array) -> Array:
        saliency: Array = finest_map(*parameters.values(), images)[0]
        return saliency[..., 0]

    return serialised(maps, images, platforms=PLATFORMS)


def stablehlo_program(file: str, size: int) -> str:
    """The text of a Python program that runs an exported program in `file` on an image."""
    return _PROGRAM.format(file=file, size=size)
