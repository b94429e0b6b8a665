"""A traced network as an ONNX graph: each operation of the jaxpr becomes one of ONNX's operators.

Only the operations of a folded network have a translation (`_TRANSLATIONS`). Layers that are functions of their own in
the jaxpr (`purinet_jax.network.layers`) become the operator that they equal. Pixels are NHWC in the jaxpr and NCHW in
the graph, without any transposition: reshaping [batch, height, width, channels] to [pixels, channels] and back, as 1×1
convolutions do, only changes the view.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from onnx import helper, numpy_helper

from purinet_jax.network.cpu.depthwise import depthwise_convolution, same_padding
from purinet_jax.network.cpu.pooling import max_pool
from purinet_jax.network.cpu.upsampling import bilinear_upsampling, transposed_convolution
from purinet_jax.network.layers import prelu

OPSET = 18
"""The version of ONNX's operators in the graphs."""

_NCHW = (0, 3, 1, 2)


@dataclass(frozen=True)
class _Pixels:
    """An array in the graph: its name, its shape as NHWC, and which of these axes the jaxpr's array has; `None` if that
    is [pixels, channels]. Axes that it lacks have length 1."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = (0, 1, 2, 3)


@dataclass(frozen=True)
class _Constant:
    """A parameter or a constant of the program, and its name."""

    value: np.ndarray
    name: str = "constant"


_Value = _Pixels | _Constant


def onnx_graph(jaxpr: ClosedJaxpr, parameters: Mapping[str, np.ndarray], output: str) -> onnx.GraphProto:
    """The graph of a network.

    Args:
      jaxpr: of parameters, in their order, and then images [batch, height, width, 3] → [batch, height, width, 1].
        Traced with a batch of at least 2, the graph takes any batch.
      parameters: the parameters' names and values, float32.
      output: the name of the output.

    Returns:
      A graph of the input `image`, float32 [batch, 3, height, width], and the output, [batch, 1, height, width].

    Raises:
      NotImplementedError: an operation of the jaxpr has no translation; the message names it.
    """
    graph = _Graph()
    image = _Pixels("image", _shape(jaxpr.jaxpr.invars[-1]))
    result = graph.translate(jaxpr, [*(_Constant(value, name) for name, value in parameters.items()), image])
    assert isinstance(result, _Pixels)
    for node in graph.nodes:
        node.output[:] = [output if name == result.name else name for name in node.output]
    used = {name for node in graph.nodes for name in node.input}

    def described(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
        sides: list[str | int | None] = ["batch", *(shape[axis] for axis in _NCHW[1:])]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides)

    return helper.make_graph(
        graph.nodes,
        "purinet_jax",
        [described("image", image.shape)],
        [described(output, result.shape)],
        [numpy_helper.from_array(value, name) for name, value in graph.initializers.items() if name in used],
    )


class _Graph:
    """The nodes and initializers so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._count: Counter[str] = Counter()

    def translate(self, jaxpr: ClosedJaxpr, inputs: Sequence[_Value]) -> _Value:
        """Adds the nodes of all equations; returns the value of the jaxpr's first output."""
        values: dict[Var, _Value] = dict(zip(jaxpr.jaxpr.invars, inputs, strict=True))
        values |= {
            variable: _Constant(np.asarray(value))
            for variable, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        }

        def value_of(atom: Any) -> _Value:
            return _Constant(np.asarray(atom.val)) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.jaxpr.eqns:
            operands = [value_of(atom) for atom in equation.invars]
            inner: ClosedJaxpr | None = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
            name = equation.primitive.name if inner is None else inner.jaxpr.debug_info.func_name
            # A function's static arguments follow its name: max_pool_3_2_1.
            name, *static = re.split(r"_(?=\d)", name)
            if (translation := _TRANSLATIONS.get(name)) is not None:
                values[equation.outvars[0]] = translation(self, equation, *operands, *map(int, static))
            elif inner is not None:
                values[equation.outvars[0]] = self.translate(inner, operands)
            else:
                raise NotImplementedError(f"{name}: has no translation to ONNX")
        return value_of(jaxpr.jaxpr.outvars[0])

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node; returns its output's name."""
        output = self.unique(operator)
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def initializer(self, name: str, value: np.ndarray) -> str:
        """Adds an initializer unless it exists; returns its name."""
        existing = self.initializers.get(name)
        if existing is None or existing.shape != value.shape or not np.array_equal(existing, value):
            name = name if existing is None else self.unique(name)
            self.initializers[name] = np.ascontiguousarray(value)
        return name

    def unique(self, name: str) -> str:
        """A name that no node or initializer has."""
        self._count[name] += 1
        return f"{name}_{self._count[name]}"


# Translations: of a graph, an equation, its operands and its static arguments → the value of its output.


def _identity(graph: _Graph, equation: JaxprEqn, x: _Value) -> _Value:
    return x


def _unary(operator: str, graph: _Graph, equation: JaxprEqn, x: _Pixels) -> _Pixels:
    return replace(x, name=graph.node(operator, [x.name]))


def _elementwise(operator: str, graph: _Graph, equation: JaxprEqn, *values: _Value) -> _Pixels:
    def broadcast(constant: _Constant) -> str:
        """A scalar or an NHWC array as an initializer that broadcasts in NCHW."""
        value = constant.value.astype(np.float32)
        if value.ndim not in (0, 4):
            raise NotImplementedError(f"{constant.name}: of {value.ndim} axes, in an elementwise operation")
        return graph.initializer(constant.name, value.transpose(_NCHW) if value.ndim else value)

    pixels = [value for value in values if isinstance(value, _Pixels)]
    if len({value.axes for value in pixels}) > 1:
        raise NotImplementedError(f"{operator} of arrays seen differently")
    shape = tuple(map(max, *(value.shape for value in pixels))) if len(pixels) > 1 else pixels[0].shape
    names = [value.name if isinstance(value, _Pixels) else broadcast(value) for value in values]
    return _Pixels(graph.node(operator, names), shape, pixels[0].axes)


def _reduction(operator: str, graph: _Graph, equation: JaxprEqn, x: _Pixels) -> _Pixels:
    assert x.axes is not None
    reduced = [x.axes[axis] for axis in equation.params["axes"]]
    axes = graph.initializer("axes", np.array(sorted(_NCHW.index(axis) for axis in reduced)))
    shape = tuple(1 if axis in reduced else side for axis, side in enumerate(x.shape))
    kept = tuple(axis for axis in x.axes if axis not in reduced)
    return _Pixels(graph.node(operator, [x.name, axes], keepdims=1), shape, kept)


def _sum(graph: _Graph, equation: JaxprEqn, x: _Value, y: _Value) -> _Pixels:
    """A constant that is added to a convolution's output becomes its bias."""
    convolution = graph.nodes[-1] if graph.nodes and graph.nodes[-1].op_type == "Conv" else None
    if convolution is None or not isinstance(x, _Pixels) or not isinstance(y, _Constant):
        return _elementwise("Add", graph, equation, x, y)
    if convolution.output[0] != x.name or len(convolution.input) != 2 or y.value.size != x.shape[3]:
        return _elementwise("Add", graph, equation, x, y)
    convolution.input.append(graph.initializer(y.name, y.value.reshape(-1)))
    # Under a new name: the output without the bias no longer exists.
    convolution.output[0] = graph.unique("Add")
    return replace(x, name=convolution.output[0])


def _convolved(graph: _Graph, x: _Pixels, kernel: _Constant, size: Sequence[int], **settings: Any) -> _Pixels:
    """`kernel` [height, width, in, out] becomes [out, in, height, width]; `size` is the output's height and width."""
    weights = graph.initializer(kernel.name, kernel.value.transpose(3, 2, 0, 1))
    name = graph.node("Conv", [x.name, weights], **settings, kernel_shape=kernel.value.shape[:2])
    return _Pixels(name, (x.shape[0], *size, kernel.value.shape[3]), x.axes)


def _convolution(graph: _Graph, equation: JaxprEqn, x: _Pixels, kernel: _Constant) -> _Pixels:
    settings = equation.params
    (top, bottom), (left, right) = settings["padding"]
    return _convolved(
        graph,
        x,
        kernel,
        _shape(equation.outvars[0])[1:3],
        strides=settings["window_strides"],
        dilations=settings["rhs_dilation"],
        pads=[top, left, bottom, right],
    )


def _depthwise_convolution(graph: _Graph, equation: JaxprEqn, x: _Pixels, kernel: _Constant) -> _Pixels:
    _, *size, features = _shape(equation.outvars[0])
    window, stride = kernel.value.shape[0], -(-x.shape[1] // size[0])
    (top, bottom), (left, right) = (same_padding(side, window, stride) for side in x.shape[1:3])
    kernel = replace(kernel, value=kernel.value.transpose(0, 1, 3, 2))
    settings = {"strides": [stride, stride], "pads": [top, left, bottom, right], "group": features}
    return _convolved(graph, x, kernel, size, **settings)


def _matrix_product(graph: _Graph, equation: JaxprEqn, x: _Pixels, matrix: _Constant) -> _Pixels:
    """[pixels, channels] times a matrix: a 1×1 convolution."""
    if x.axes is not None or equation.params["dimension_numbers"] != (((1,), (0,)), ((), ())):
        raise NotImplementedError("dot_general of other than pixels and a matrix")
    return _convolved(graph, x, replace(matrix, value=matrix.value[None, None]), x.shape[1:3])


def _transposed_convolution(graph: _Graph, equation: JaxprEqn, x: _Pixels, kernel: _Constant) -> _Pixels:
    stride = kernel.value.shape[0] // 2
    weights = graph.initializer(kernel.name, kernel.value.transpose(2, 3, 0, 1))
    settings = {"strides": [stride] * 2, "pads": [stride // 2] * 4, "kernel_shape": [2 * stride] * 2}
    return _Pixels(graph.node("ConvTranspose", [x.name, weights], **settings), _shape(equation.outvars[0]))


def _bilinear_upsampling(graph: _Graph, equation: JaxprEqn, x: _Pixels) -> _Pixels:
    shape = _shape(equation.outvars[0])
    scales = graph.initializer("scales", np.array([1, 1, shape[1] / x.shape[1], shape[2] / x.shape[2]], np.float32))
    settings = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return _Pixels(graph.node("Resize", [x.name, "", scales], **settings), shape)


def _max_pool(graph: _Graph, equation: JaxprEqn, x: _Pixels, window: int, stride: int, padding: int) -> _Pixels:
    shape = _shape(equation.outvars[0])
    after = [max((shape[i] - 1) * stride + window - x.shape[i] - padding, 0) for i in (1, 2)]
    settings = {"kernel_shape": [window] * 2, "strides": [stride] * 2, "pads": [padding, padding, *after]}
    return _Pixels(graph.node("MaxPool", [x.name], **settings), shape)


def _prelu(graph: _Graph, equation: JaxprEqn, x: _Pixels, slope: _Constant) -> _Pixels:
    return replace(x, name=graph.node("LeakyRelu", [x.name], alpha=float(slope.value[0])))


def _relu6(graph: _Graph, equation: JaxprEqn, x: _Pixels) -> _Pixels:
    bounds = [graph.initializer(f"{bound}", np.array(bound, np.float32)) for bound in (0, 6)]
    return replace(x, name=graph.node("Clip", [x.name, *bounds]))


def _slice(graph: _Graph, equation: JaxprEqn, x: _Pixels) -> _Pixels:
    settings = equation.params
    steps = settings["strides"] or (1,) * len(x.shape)
    cut = [axis for axis in (1, 2) if (settings["limit_indices"][axis], steps[axis]) != (x.shape[axis], 1)]
    ranges = {
        "starts": [settings["start_indices"][axis] for axis in cut],
        "ends": [settings["limit_indices"][axis] for axis in cut],
        "axes": [_NCHW.index(axis) for axis in cut],
        "steps": [steps[axis] for axis in cut],
    }
    inputs = [graph.initializer(name, np.array(values)) for name, values in ranges.items()]
    return _Pixels(graph.node("Slice", [x.name, *inputs]), _shape(equation.outvars[0]))


def _reshape(graph: _Graph, equation: JaxprEqn, x: _Pixels) -> _Pixels:
    old, new = _shape(equation.invars[0]), _shape(equation.outvars[0])
    if x.axes == (0, 1, 2, 3) and new == (math.prod(old[:3]), old[3]):
        return replace(x, axes=None)
    if x.axes is None and new == x.shape:
        return replace(x, axes=(0, 1, 2, 3))
    raise NotImplementedError(f"reshape from {old} to {new}")


def _squeeze(graph: _Graph, equation: JaxprEqn, x: _Constant) -> _Constant:
    return replace(x, value=x.value.squeeze(equation.params["dimensions"]))


def _broadcast_in_dim(graph: _Graph, equation: JaxprEqn, x: _Value) -> _Value:
    """New axes have length 1, whatever the shape: ONNX's operators broadcast."""
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    if isinstance(x, _Constant):
        sides = [x.value.shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(shape))]
        return replace(x, value=x.value.reshape(sides))
    if len(shape) != 4 or x.axes != axes:
        raise NotImplementedError(f"broadcast_in_dim to {shape}")
    return replace(x, axes=(0, 1, 2, 3))


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


# JAX's primitives
_TRANSLATIONS: dict[str, Callable[..., _Value]] = {
    "add": _sum,
    "broadcast_in_dim": _broadcast_in_dim,
    "conv_general_dilated": _convolution,
    "copy": _identity,
    "div": partial(_elementwise, "Div"),
    "dot_general": _matrix_product,
    "exp": partial(_unary, "Exp"),
    "logistic": partial(_unary, "Sigmoid"),
    "max": partial(_elementwise, "Max"),
    "min": partial(_elementwise, "Min"),
    "mul": partial(_elementwise, "Mul"),
    "neg": partial(_unary, "Neg"),
    "reduce_max": partial(_reduction, "ReduceMax"),
    "reduce_sum": partial(_reduction, "ReduceSum"),
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "stop_gradient": _identity,
    "sub": partial(_elementwise, "Sub"),
    "tanh": partial(_unary, "Tanh"),
}
# Functions that appear by name in a jaxpr
_FUNCTIONS: list[tuple[Any, Callable[..., _Value]]] = [
    (bilinear_upsampling, _bilinear_upsampling),
    (depthwise_convolution, _depthwise_convolution),
    (jax.nn.relu, partial(_unary, "Relu")),
    (jax.nn.relu6, _relu6),
    (max_pool, _max_pool),
    (prelu, _prelu),
    (transposed_convolution, _transposed_convolution),
]
_TRANSLATIONS |= {function.__name__: translation for function, translation in _FUNCTIONS}
