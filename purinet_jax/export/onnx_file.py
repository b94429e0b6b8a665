"""ONNX: a graph for onnxruntime and other runtimes that know nothing of JAX, written with `onnx` (the extra `onnx`)."""

import json

import jax
import jax.numpy as jnp
from onnx import checker, helper

from purinet_jax.export.graph import OPSET, onnx_graph
from purinet_jax.export.tracing import traced_map
from purinet_jax.network.model import model_config
from purinet_jax.prediction.predictor import Predictor
from purinet_jax.version import __version__

_PROGRAM = """\
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession({file!r})
image = Image.open("photo.jpg").convert("RGB")
square = np.asarray(image.resize(({size}, {size}), Image.Resampling.BILINEAR), np.float32) / 255
normalised = (square - np.float32({mean})) / np.float32({std})
saliency = session.run(None, {{"image": normalised.transpose(2, 0, 1)[None]}})[0][0, 0]
Image.fromarray(np.uint8(255 * saliency + 0.5)).resize(image.size, Image.Resampling.BILINEAR).save("map.png")
"""


def export_onnx(predictor: Predictor) -> bytes:
    """A predictor's network as an ONNX model, the weights being part of it.

    Its input `image` is float32 [batch, 3, size, size], RGB, squashed to the predictor's size and normalised: (pixel /
    255 − mean) / std; its output `saliency` is float32 [batch, 1, size, size] in [0, 1], the finest map. The batch may
    be of any length. The model's metadata say all of that, mean and std too.
    """
    size = predictor.size
    # Of two images: a batch of one could be mistaken for an axis that is repeated.
    jaxpr, parameters = traced_map(predictor, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))
    graph = onnx_graph(jaxpr, parameters, "saliency")
    written = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="purinet_jax",
        producer_version=__version__,
        ir_version=10,
        doc_string="Salient object detection: an image in, how salient each of its pixels is out.",
    )
    helper.set_model_props(written, onnx_metadata(predictor))
    checker.check_model(written, full_check=True)
    return bytes(written.SerializeToString())


def onnx_metadata(predictor: Predictor) -> dict[str, str]:
    """What an exported model says of itself: the input's convention and the network's configuration."""
    backbone = predictor.model.backbone
    return {
        "input": "image: RGB, float32 [batch, 3, size, size] (NCHW), (pixel / 255 - mean) / std",
        "output": "saliency: float32 [batch, 1, size, size] from 0 to 1",
        "layout": "NCHW",
        "channels": "RGB",
        "range": "0 to 1, before mean and std",
        "mean": json.dumps(backbone.pixel_mean),
        "std": json.dumps(backbone.pixel_std),
        "size": str(predictor.size),
        "model": json.dumps(model_config(predictor.model)),
    }


def onnx_program(file: str, predictor: Predictor) -> str:
    """The program in Python that runs `export_onnx`'s answer in `file` on a picture, as text."""
    backbone = predictor.model.backbone
    return _PROGRAM.format(file=file, size=predictor.size, mean=backbone.pixel_mean, std=backbone.pixel_std)
