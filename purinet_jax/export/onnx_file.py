"""Export to ONNX, for onnxruntime and other runtimes; needs the extra `onnx`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from onnx import checker, helper

from purinet_jax.export.graph import OPSET, onnx_graph
from purinet_jax.export.tracing import traced_map
from purinet_jax.network.config import ModelConfig
from purinet_jax.prediction.predictor import Predictor
from purinet_jax.version import __version__

_PROGRAM = """\
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession({file!r})
image = Image.open("photo.jpg").convert("RGB")
square = np.asarray(image.resize(({size}, {size}), Image.Resampling.BILINEAR), np.float32) / 255
mean, std = np.float32({mean}), np.float32({std})
saliency = session.run(None, {{"image": ((square - mean) / std).transpose(2, 0, 1)[None]}})[0][0, 0]
Image.fromarray(np.uint8(255 * saliency + 0.5)).resize(image.size, Image.Resampling.BILINEAR).save("map.png")
"""


def export_onnx(predictor: Predictor) -> bytes:
    """Returns a predictor's network with its weights as an ONNX model for any batch.

    Its input `image` is float32 [batch, 3, size, size], RGB, resized to the predictor's size and normalised: (pixel /
    255 − mean) / std; its output `saliency` is float32 [batch, 1, size, size] in [0, 1], the finest map. The model's
    metadata describe both, and hold mean, std and the network's configuration.
    """
    size = predictor.size
    # Two images: a batch of one would look like an axis that broadcasts.
    jaxpr, parameters = traced_map(predictor, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))
    graph = onnx_graph(jaxpr, parameters, "saliency")
    written = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="purinet_jax",
        producer_version=__version__,
        ir_version=10,
        doc_string="Salient object detection: from an image to the saliency of its pixels.",
    )
    backbone = predictor.model.backbone
    metadata = {
        "input": "image: RGB, float32 [batch, 3, size, size] (NCHW), (pixel / 255 - mean) / std",
        "output": "saliency: float32 [batch, 1, size, size] from 0 to 1",
        "layout": "NCHW",
        "channels": "RGB",
        "range": "0 to 1, before mean and std",
        "mean": json.dumps(backbone.pixel_mean),
        "std": json.dumps(backbone.pixel_std),
        "size": str(size),
        "model": json.dumps(ModelConfig.from_model(predictor.model).to_dict()),
    }
    helper.set_model_props(written, metadata)
    checker.check_model(written, full_check=True)
    return bytes(written.SerializeToString())


def onnx_program(file: str, predictor: Predictor) -> str:
    """The text of a Python program that runs an exported model in `file` on an image."""
    backbone = predictor.model.backbone
    # as short as float32 numbers can be
    mean, std = ([float(str(np.float32(x))) for x in values] for values in (backbone.pixel_mean, backbone.pixel_std))
    return _PROGRAM.format(file=file, size=predictor.size, mean=mean, std=std)
