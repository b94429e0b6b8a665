"""Export to ONNX, for onnxruntime and other runtimes; needs the extra `onnx`."""

import json
import shlex
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from onnx import GraphProto, checker, helper, numpy_helper

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

REMBG_SIZE = 320
"""Side of the square that rembg's session `u2net_custom` resizes images to, pixels."""

# How that session normalises channels, after dividing by the image's largest value.
_REMBG_MEAN = (0.485, 0.456, 0.406)
_REMBG_STD = (0.229, 0.224, 0.225)


def export_onnx(predictor: Predictor, *, rembg: bool = False) -> bytes:
    """Returns a predictor's network with its weights as an ONNX model for any batch.

    Its input `image` is float32 [batch, 3, size, size], RGB, resized to the predictor's size and normalised: (pixel /
    255 − mean) / std; its output `saliency` is float32 [batch, 1, size, size] in [0, 1], the finest map. The model's
    metadata describe both, and hold mean, std and the network's configuration.

    With `rembg`, the model is one for rembg's session `u2net_custom`, whose size is `REMBG_SIZE`: mean and std are
    rembg's, and each map's smallest value becomes 0 and its largest 1, so that rembg, which stretches maps to that
    range, leaves the other values as they are.
    """
    size = predictor.size
    # Two images: a batch of one would look like an axis that broadcasts.
    jaxpr, parameters = traced_map(predictor, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))
    graph = onnx_graph(jaxpr, parameters, "saliency")
    backbone = predictor.model.backbone
    mean, std = backbone.pixel_mean, backbone.pixel_std
    if rembg:
        _adapt_to_rembg(graph, mean, std)
        mean, std = _REMBG_MEAN, _REMBG_STD
    divisor = "the image's maximum" if rembg else "255"
    written = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="purinet_jax",
        producer_version=__version__,
        ir_version=10,
        doc_string="Salient object detection: from an image to the saliency of its pixels.",
    )
    metadata = {
        "input": f"image: RGB, float32 [batch, 3, size, size] (NCHW), (pixel / {divisor} - mean) / std",
        "output": "saliency: float32 [batch, 1, size, size] from 0 to 1",
        "layout": "NCHW",
        "channels": "RGB",
        "range": "0 to 1, before mean and std",
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "size": str(size),
        "model": json.dumps(ModelConfig.from_model(predictor.model).to_dict()),
    }
    helper.set_model_props(written, metadata)
    checker.check_model(written, full_check=True)
    return bytes(written.SerializeToString())


def _adapt_to_rembg(graph: GraphProto, mean: Sequence[float], std: Sequence[float]) -> None:
    """Changes a graph of `onnx_graph`, for images normalised by `mean` and `std`, to what rembg gives and takes."""
    for node in graph.node:
        node.input[:] = ["normalised" if name == "image" else name for name in node.input]
        node.output[:] = ["map" if name == "saliency" else name for name in node.output]
    constants = {
        "rembg_scale": np.divide(_REMBG_STD, std).reshape(3, 1, 1).astype(np.float32),
        "rembg_offset": (np.subtract(_REMBG_MEAN, mean) / std).reshape(3, 1, 1).astype(np.float32),
        "rembg_axes": np.array([1, 2, 3]),
        "rembg_zero": np.float32(0),
        "rembg_one": np.float32(1),
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    nodes = [
        helper.make_node("Mul", ["image", "rembg_scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "rembg_offset"], ["normalised"]),
        *graph.node,
        helper.make_node("ReduceMin", ["map", "rembg_axes"], ["smallest"]),
        helper.make_node("ReduceMax", ["map", "rembg_axes"], ["largest"]),
        helper.make_node("Equal", ["map", "smallest"], ["is_smallest"]),
        helper.make_node("Equal", ["map", "largest"], ["is_largest"]),
        helper.make_node("Where", ["is_smallest", "rembg_zero", "map"], ["from_zero"]),
        helper.make_node("Where", ["is_largest", "rembg_one", "from_zero"], ["saliency"]),
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def rembg_command(file: str) -> str:
    """The lines of a shell that cut an image out by rembg with an exported model in `file`."""
    extras = shlex.quote(json.dumps({"model_path": file}))
    command = f"rembg i -m u2net_custom -x {extras} photo.jpg cutout.png"
    return f"# rembg reads models below ~/.u2net, ~/.rembg or $U2NET_HOME only\n{command}\n"


def onnx_program(file: str, predictor: Predictor) -> str:
    """The text of a Python program that runs an exported model in `file` on an image."""
    backbone = predictor.model.backbone
    # as short as float32 numbers can be
    mean, std = ([float(str(np.float32(x))) for x in values] for values in (backbone.pixel_mean, backbone.pixel_std))
    return _PROGRAM.format(file=file, size=predictor.size, mean=mean, std=std)
