"""A traced network as an ONNX graph: each operation of the jaxpr becomes ONNX's own.

What is translated is what a folded network consists of, and no more: an operation that is not known here is named in a
`NotImplementedError`. Layers whose form is made for XLA stand whole in the jaxpr (`purinet_jax.network.layers`), and
become the ONNX operator that they equal. Pixels are NHWC in the jaxpr and NCHW in the graph, without any transposition
between: each array of pixels is made in its own layout, and reshaping [batch, height, width, channels] to
[pixels, channels] and back, as 1×1 convolutions do, is only another way to see it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from onnx import helper, numpy_helper

from purinet_jax.network.layers import same_padding

OPSET = 18
"""The version of ONNX's operators that graphs are written in."""

_NCHW = (0, 3, 1, 2)
_SAME_NAMES = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"}
_UNARY = {"exp": "Exp", "tanh": "Tanh", "logistic": "Sigmoid", "neg": "Neg"}
_REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_sum": "ReduceSum"}
_IDENTITIES = ("stop_gradient", "copy")


@dataclass(frozen=True)
class _Pixels:
    """An array in the graph: its name there, its shape as NHWC, and which of these axes the jaxpr's has; `None` where
    it has [pixels, channels]. Axes that it lacks are of length 1."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = (0, 1, 2, 3)


@dataclass(frozen=True)
class _Constant:
    """A parameter or a number, and its name."""

    value: np.ndarray
    name: str


_Value = _Pixels | _Constant


def onnx_graph(jaxpr: ClosedJaxpr, parameters: Mapping[str, np.ndarray], output: str) -> onnx.GraphProto:
    """The graph of a network.

    Args:
      jaxpr: of parameters, in their order, and then images [batch, height, width, 3] → [batch, height, width, 1].
        Traced at any batch of at least 2, the graph takes any.
      parameters: the parameters' names and values, float32.
      output: the name of the answer.

    Returns:
      A graph of the input `image`, float32 [batch, 3, height, width], and the output, [batch, 1, height, width].

    Raises:
      NotImplementedError: an operation of the jaxpr is not known.
    """
    graph = _Graph()
    *variables, image = jaxpr.jaxpr.invars
    for variable, (name, value) in zip(variables, parameters.items(), strict=True):
        graph.values[variable] = _Constant(value, name)
    graph.values[image] = _Pixels("image", _shape(image))
    for variable, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
        graph.values[variable] = _Constant(np.asarray(value), "constant")
    graph.translate(jaxpr.jaxpr)
    answer = graph.value(jaxpr.jaxpr.outvars[0])
    assert isinstance(answer, _Pixels)
    nodes = graph.with_biases()
    for node in nodes:  # the answer has its own name
        node.output[:] = [output if name == answer.name else name for name in node.output]
    used = {name for node in nodes for name in node.input}

    def described(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
        sides: list[str | int | None] = ["batch", *(shape[axis] for axis in _NCHW[1:])]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides)

    return helper.make_graph(
        nodes,
        "purinet_jax",
        [described("image", _shape(image))],
        [described(output, answer.shape)],
        [numpy_helper.from_array(value, name) for name, value in graph.initializers.items() if name in used],
    )


class _Graph:
    """Nodes and initializers as they are made, and what each of the jaxpr's variables has become."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.values: dict[Var, _Value] = {}
        self._count: Counter[str] = Counter()

    def value(self, atom: Any) -> _Value:
        """What a variable or literal has become."""
        return _Constant(np.asarray(atom.val), "constant") if isinstance(atom, Literal) else self.values[atom]

    def translate(self, jaxpr: Jaxpr) -> None:
        """Makes the nodes of all equations."""
        for equation in jaxpr.eqns:
            values = [self.value(atom) for atom in equation.invars]
            self.values[equation.outvars[0]] = self._translated(equation, values)

    def _translated(self, equation: JaxprEqn, values: Sequence[Any]) -> _Value:
        name, inner = _name(equation), _inner(equation)
        whole: Callable[..., _Value] | None = getattr(self, f"_{name}", None)
        if whole is not None:
            return whole(equation, *values)
        if inner is not None:
            self.values |= dict(zip(inner.jaxpr.invars, values, strict=True))
            self.values |= {
                variable: _Constant(np.asarray(value), "constant")
                for variable, value in zip(inner.jaxpr.constvars, inner.consts, strict=True)
            }
            self.translate(inner.jaxpr)
            return self.value(inner.jaxpr.outvars[0])
        if name in _IDENTITIES:
            return values[0]
        if name in _UNARY:
            return replace(values[0], name=self._node(_UNARY[name], [values[0].name]))
        if name in _SAME_NAMES:
            return self._elementwise(_SAME_NAMES[name], *values)
        if name in _REDUCTIONS:
            return self._reduced(_REDUCTIONS[name], values[0], equation.params["axes"])
        raise NotImplementedError(f"{name}: has no translation to ONNX")

    # What makes nodes -----------------------------------------------------------------------------------

    def _node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node; returns its output's name."""
        output = self._unique(operator)
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def _initializer(self, name: str, value: np.ndarray) -> str:
        """Adds an initializer, unless it is there; returns its name."""
        there = self.initializers.get(name)
        if there is None or there.shape != value.shape or not np.array_equal(there, value):
            name = name if there is None else self._unique(name)
            self.initializers[name] = np.ascontiguousarray(value)
        return name

    def _unique(self, name: str) -> str:
        self._count[name] += 1
        return f"{name}_{self._count[name]}"

    def _elementwise(self, operator: str, *values: _Value) -> _Pixels:
        pixels = [value for value in values if isinstance(value, _Pixels)]
        first = pixels[0]
        if any(value.axes != first.axes for value in pixels):
            raise NotImplementedError(f"{operator} of arrays seen differently")
        shape = tuple(map(max, *(value.shape for value in pixels))) if len(pixels) > 1 else first.shape
        names = [value.name if isinstance(value, _Pixels) else self._broadcast(value) for value in values]
        return _Pixels(self._node(operator, names), shape, first.axes)

    def _broadcast(self, constant: _Constant) -> str:
        """A number, or what lies along all pixels, NHWC, as an initializer that broadcasts in NCHW."""
        value = constant.value.astype(np.float32)
        if value.ndim not in (0, 4):
            raise NotImplementedError(f"{constant.name}: of {value.ndim} axes, in an elementwise operation")
        return self._initializer(constant.name, value.transpose(_NCHW) if value.ndim else value)

    def _reduced(self, operator: str, x: _Pixels, axes: Sequence[int]) -> _Pixels:
        assert x.axes is not None
        gone = [x.axes[axis] for axis in axes]
        nchw = self._initializer("axes", np.array(sorted(_NCHW.index(axis) for axis in gone)))
        shape = tuple(1 if axis in gone else side for axis, side in enumerate(x.shape))
        kept = tuple(axis for axis in x.axes if axis not in gone)
        return _Pixels(self._node(operator, [x.name, nchw], keepdims=1), shape, kept)

    def _convolved(self, x: _Pixels, kernel: _Constant, features: int, size: Sequence[int], **settings: Any) -> _Pixels:
        """`kernel` [height, width, in, out] becomes [out, in, height, width]."""
        weights = self._initializer(kernel.name, kernel.value.transpose(3, 2, 0, 1))
        settings["kernel_shape"] = kernel.value.shape[:2]
        return _Pixels(self._node("Conv", [x.name, weights], **settings), (x.shape[0], *size, features), x.axes)

    # Operations by their names in a jaxpr ----------------------------------------------------------------

    def _conv_general_dilated(self, equation: JaxprEqn, x: _Pixels, kernel: _Constant) -> _Pixels:
        settings = equation.params
        (top, bottom), (left, right) = settings["padding"]
        *_, height, width, features = _shape(equation.outvars[0])
        return self._convolved(
            x,
            kernel,
            features,
            (height, width),
            strides=settings["window_strides"],
            dilations=settings["rhs_dilation"],
            pads=[top, left, bottom, right],
        )

    def _depthwise_convolution(self, equation: JaxprEqn, x: _Pixels, kernel: _Constant) -> _Pixels:
        _, height, width, features = _shape(equation.outvars[0])
        window = kernel.value.shape[0]
        stride = -(-x.shape[1] // height)
        (top, bottom), (left, right) = (same_padding(side, window, stride) for side in x.shape[1:3])
        per_channel = replace(kernel, value=kernel.value.transpose(0, 1, 3, 2))
        settings = {"strides": [stride, stride], "pads": [top, left, bottom, right], "group": features}
        return self._convolved(x, per_channel, features, (height, width), **settings)

    def _dot_general(self, equation: JaxprEqn, x: _Pixels, matrix: _Constant) -> _Pixels:
        """[pixels, channels] times a matrix: a 1×1 convolution."""
        if x.axes is not None or equation.params["dimension_numbers"] != (((1,), (0,)), ((), ())):
            raise NotImplementedError("dot_general of other than pixels and a matrix")
        kernel = replace(matrix, value=matrix.value[None, None])
        return self._convolved(x, kernel, matrix.value.shape[1], x.shape[1:3])

    def _transposed_convolution(self, equation: JaxprEqn, x: _Pixels, kernel: _Constant) -> _Pixels:
        stride = kernel.value.shape[0] // 2
        weights = self._initializer(kernel.name, kernel.value.transpose(2, 3, 0, 1))
        settings = {"strides": [stride] * 2, "pads": [stride // 2] * 4, "kernel_shape": [2 * stride] * 2}
        return _Pixels(self._node("ConvTranspose", [x.name, weights], **settings), _shape(equation.outvars[0]))

    def _bilinear_upsampling(self, equation: JaxprEqn, x: _Pixels) -> _Pixels:
        shape = _shape(equation.outvars[0])
        scales = self._initializer("scales", np.array([1, 1, shape[1] / x.shape[1], shape[2] / x.shape[2]], np.float32))
        settings = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return _Pixels(self._node("Resize", [x.name, "", scales], **settings), shape)

    def _max_pool(self, equation: JaxprEqn, x: _Pixels) -> _Pixels:
        """A maximum over as many slices as the window has places, of what is padded first."""
        inner = _inner(equation)
        assert inner is not None
        shape = _shape(equation.outvars[0])
        parts = list(_all_equations(inner.jaxpr))
        window = math.isqrt(sum(_name(part) == "slice" for part in parts))
        paddings = [part.params["padding_config"] for part in parts if _name(part) == "pad"]
        (top, bottom), (left, right) = [side[:2] for side in paddings[0][1:3]] if paddings else ((0, 0), (0, 0))
        stride = -(-x.shape[1] // shape[1])
        settings = {"kernel_shape": [window] * 2, "strides": [stride] * 2, "pads": [top, left, bottom, right]}
        return _Pixels(self._node("MaxPool", [x.name], **settings), shape)

    def _prelu(self, equation: JaxprEqn, x: _Pixels, slope: _Constant) -> _Pixels:
        return replace(x, name=self._node("LeakyRelu", [x.name], alpha=float(slope.value[0])))

    def _relu(self, equation: JaxprEqn, x: _Pixels) -> _Pixels:
        return replace(x, name=self._node("Relu", [x.name]))

    def _relu6(self, equation: JaxprEqn, x: _Pixels) -> _Pixels:
        bounds = [self._initializer(f"{bound}", np.array(bound, np.float32)) for bound in (0, 6)]
        return replace(x, name=self._node("Clip", [x.name, *bounds]))

    def _slice(self, equation: JaxprEqn, x: _Pixels) -> _Pixels:
        settings = equation.params
        steps = settings["strides"] or (1,) * len(x.shape)
        cut = [axis for axis in (1, 2) if (settings["limit_indices"][axis], steps[axis]) != (x.shape[axis], 1)]
        ranges = {
            "starts": [settings["start_indices"][axis] for axis in cut],
            "ends": [settings["limit_indices"][axis] for axis in cut],
            "axes": [_NCHW.index(axis) for axis in cut],
            "steps": [steps[axis] for axis in cut],
        }
        inputs = [self._initializer(name, np.array(values)) for name, values in ranges.items()]
        return _Pixels(self._node("Slice", [x.name, *inputs]), _shape(equation.outvars[0]))

    def _reshape(self, equation: JaxprEqn, x: _Pixels) -> _Pixels:
        old, new = _shape(equation.invars[0]), _shape(equation.outvars[0])
        if x.axes == (0, 1, 2, 3) and new == (math.prod(old[:3]), old[3]):
            return replace(x, axes=None)
        if x.axes is None and new == x.shape:
            return replace(x, axes=(0, 1, 2, 3))
        raise NotImplementedError(f"reshape from {old} to {new}")

    def _squeeze(self, equation: JaxprEqn, x: _Constant) -> _Constant:
        return replace(x, value=x.value.squeeze(equation.params["dimensions"]))

    def _broadcast_in_dim(self, equation: JaxprEqn, x: _Value) -> _Value:
        """Along axes of length 1; those to be repeated stay so, since ONNX's operators repeat by themselves."""
        shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
        if isinstance(x, _Constant):
            sides = [x.value.shape[places.index(axis)] if axis in places else 1 for axis in range(len(shape))]
            return replace(x, value=x.value.reshape(sides))
        if len(shape) != 4 or x.axes != places:
            raise NotImplementedError(f"broadcast_in_dim to {shape}")
        return replace(x, axes=(0, 1, 2, 3))

    # Afterwards -------------------------------------------------------------------------------------------

    def with_biases(self) -> list[onnx.NodeProto]:
        """The nodes, a constant that is added to a convolution's output being its bias."""
        uses = Counter(name for node in self.nodes for name in node.input)
        makers = {node.output[0]: node for node in self.nodes}
        nodes: list[onnx.NodeProto] = []
        for node in self.nodes:
            maker = makers.get(node.input[0])
            bias = self.initializers.get(node.input[-1])
            if (
                node.op_type != "Add"
                or bias is None
                or maker is None
                or maker.op_type != "Conv"
                or len(maker.input) != 2
                or uses[maker.output[0]] != 1
                or bias.size != self.initializers[maker.input[1]].shape[0]
            ):
                nodes.append(node)
                continue
            self.initializers[node.input[-1]] = bias.reshape(-1)
            maker.input.append(node.input[-1])
            maker.output[0] = node.output[0]
            makers[node.output[0]] = maker
        return nodes


def _name(equation: JaxprEqn) -> str:
    """An operation's name: of a function that stands whole in the jaxpr, its own."""
    inner = _inner(equation)
    return equation.primitive.name if inner is None else inner.jaxpr.debug_info.func_name


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _inner(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of a function that stands whole in another."""
    inner: ClosedJaxpr | None = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    return inner


def _all_equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """The equations of a jaxpr, those of functions within too."""
    for equation in jaxpr.eqns:
        yield equation
        inner = _inner(equation)
        if inner is not None:
            yield from _all_equations(inner.jaxpr)
