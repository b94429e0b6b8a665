"""An exported network in PyTorch, for `time_exported.py`: a layer for each operation that `purinet_jax.export` uses."""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional


class TorchNetwork(nn.Module):
    """An exported network as a module: normalised images [batch, 3, height, width] → maps [batch, 1, height, width].

    Raises:
      KeyError: the graph has an unknown operation.
    """

    def __init__(self, exported: bytes) -> None:
        super().__init__()
        graph = onnx.load_from_string(exported).graph
        self.image, self.saliency = graph.input[0].name, graph.output[0].name
        constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
        # Axes, bounds and factors as Python numbers, constants to torch.compile; the rest as tensors.
        plain = {name for node in graph.node if node.op_type in _WITH_NUMBERS for name in node.input[1:] if name}
        self.numbers = {name: constants[name].tolist() for name in plain}
        self.names = {name: name.replace("/", "_") for name in constants if name not in plain}
        for name, buffer in self.names.items():
            self.register_buffer(buffer, torch.from_numpy(constants[name].copy()))
        self.layers = [
            (_LAYERS[node.op_type], [name for name in node.input if name], node.output[0], _settings(node))
            for node in graph.node
        ]

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self.names.items()}
        values.update(self.numbers)
        values[self.image] = image
        for layer, inputs, output, settings in self.layers:
            values[output] = layer(*(values[name] for name in inputs), **settings)
        saliency: Tensor = values[self.saliency]
        return saliency


def _settings(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _padded(x: Tensor, pads: list[int], fill: float) -> tuple[Tensor, tuple[int, int]]:
    """ONNX pads (top, left, bottom, right) as PyTorch's layers take them: the same on both sides of an axis."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, (left, right, top, bottom), value=fill), (0, 0)


def _convolution(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: list[int],
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    group: int = 1,
) -> Tensor:
    x, padding = _padded(x, list(pads), 0)
    return functional.conv2d(x, kernel, bias, tuple(strides), padding, tuple(dilations), group)


def _transposed_convolution(x: Tensor, kernel: Tensor, bias: Tensor | None = None, **settings: list[int]) -> Tensor:
    return functional.conv_transpose2d(x, kernel, bias, settings["strides"], settings.get("pads", [0, 0])[:2])


def _max_pool(x: Tensor, *, kernel_shape: list[int], strides: list[int], pads: list[int], ceil_mode: int = 0) -> Tensor:
    x, padding = _padded(x, pads, float("-inf"))
    return functional.max_pool2d(x, kernel_shape, strides, padding, ceil_mode=bool(ceil_mode))


def _resize(x: Tensor, scales: list[float], **_: object) -> Tensor:
    return functional.interpolate(x, scale_factor=scales[2:], mode="bilinear", align_corners=False)


def _slice(x: Tensor, starts: list[int], ends: list[int], axes: list[int], steps: list[int] | None = None) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(axes), strict=True):
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


_WITH_NUMBERS = ("Clip", "ReduceMax", "ReduceSum", "Resize", "Slice")
_LAYERS: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Clip": lambda x, low, high: torch.clamp(x, low[0], high[0]),
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Div": torch.div,
    "Exp": torch.exp,
    "LeakyRelu": lambda x, alpha: functional.leaky_relu(x, alpha),
    "Max": torch.maximum,
    "MaxPool": _max_pool,
    "Min": torch.minimum,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "ReduceMax": lambda x, axes, keepdims=1: torch.amax(x, axes, bool(keepdims)),
    "ReduceSum": lambda x, axes, keepdims=1: torch.sum(x, axes, bool(keepdims)),
    "Relu": functional.relu,
    "Resize": _resize,
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
}
