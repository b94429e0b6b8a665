"""StableHLO by `jax.export`: one file for CPUs, NVIDIA's GPUs and TPUs, run by JAX without this package."""

import jax
import jax.numpy as jnp
from jax import Array, export
from jax.extend.core import jaxpr_as_fun

from purinet_jax.export.tracing import traced_map
from purinet_jax.network.inference import serialised
from purinet_jax.prediction.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")
"""What an exported program runs on, as JAX calls it."""

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
    """A predictor's network as a program of its own, the weights being part of it.

    The program takes uint8 RGB [batch, size, size, 3] as pictures hold them, squashed to the predictor's size, and
    answers float32 [batch, size, size] in [0, 1], the finest map; the batch may be of any length.

    Returns:
      What `jax.export.deserialize` takes.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, predictor.size, predictor.size, 3), jnp.uint8)
    jaxpr, parameters = traced_map(predictor, images)
    answer = jaxpr_as_fun(jaxpr)

    def maps(images: Array) -> Array:
        saliency: Array = answer(*parameters.values(), images)[0]
        return saliency[..., 0]

    return serialised(maps, images, platforms=PLATFORMS)


def stablehlo_program(file: str, size: int) -> str:
    """The program in Python that runs `export_stablehlo`'s answer in `file` on a picture, as text."""
    return _PROGRAM.format(file=file, size=size)
