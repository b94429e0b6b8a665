"""Folding BatchNorm for inference: with fixed statistics it is an affine map of each channel, which the convolution
before it can apply. Only the variables change: layers see from them whether they are folded (`Conv`, `DepthwiseConv`
and `BatchNorm` in `purinet_jax.network.layers`).
"""

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

# `apply_folds` needs neither Flax nor tracing.
if TYPE_CHECKING:
    import flax.linen as nn

Path = tuple[str, ...]


class Fold(NamedTuple):
    """A BatchNorm directly after a convolution: the paths of both modules, and the BatchNorm's epsilon."""

    convolution: Path
    norm: Path
    epsilon: float


def fold_batchnorm(model: "nn.Module", variables: Mapping[str, Any]) -> dict[str, Any]:
    """Folds each BatchNorm of a network into the convolution whose output it normalises.

    Args:
      model: `PurNet`, or any module of this package's layers that takes images [batch, height, width, 3]. It is traced
        once to find the order of its layers.
      variables: `{"params": …, "batch_stats": …}`; not changed.

    Returns:
      Variables of NumPy float32 arrays, with which `model.apply` (not in training) computes the same up to rounding:
      the convolutions have other kernels and a bias, the BatchNorms no variables. A BatchNorm that does not directly
      follow a convolution is left as it is.
    """
    return apply_folds(find_folds(model, variables), variables)


def find_folds(model: "nn.Module", variables: Mapping[str, Any]) -> tuple[Fold, ...]:
    """Every BatchNorm of `model` that takes a convolution's output, in order. Nothing else may take that output."""
    import flax.linen as nn
    import jax

    from purinet_jax.network.layers import BatchNorm, Conv, DepthwiseConv

    outputs: dict[int, tuple[Path, Any]] = {}  # by id; the outputs are kept, so that no id is used again
    folds: list[Fold] = []

    def watch(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, BatchNorm):
            convolution = outputs.get(id(arguments[0]))
            if convolution is not None and module.has_variable("batch_stats", "mean"):
                folds.append(Fold(convolution[0], module.path, module.epsilon))
            return arguments[0] + 0  # another array of that shape: BatchNorm itself takes long to trace
        result = call(*arguments, **keywords)
        if isinstance(module, Conv | DepthwiseConv):
            outputs[id(result)] = module.path, result
        return result

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)  # any size has the same layers
    with nn.intercept_methods(watch):
        jax.eval_shape(model.apply, variables, images)
    return tuple(folds)


def apply_folds(folds: Iterable[Fold], variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with `folds` applied, as `fold_batchnorm` returns them; computed in float64."""
    params, statistics = (_copied(variables.get(name, {})) for name in ("params", "batch_stats"))
    for convolution, norm, epsilon in folds:
        affine, moments = _taken(params, norm), _taken(statistics, norm)
        factor = affine["scale"] / np.sqrt(moments["var"] + epsilon)
        layer = functools.reduce(dict.__getitem__, convolution, params)
        bias = np.asarray(layer.get("bias", 0.0), np.float64)
        layer["bias"] = (affine["bias"] + (bias - moments["mean"]) * factor).astype(np.float32)
        depthwise = "depthwise_kernel" in layer
        kernel = "depthwise_kernel" if depthwise else "kernel"
        per_channel = factor[:, None] if depthwise else factor  # [channels, 1] or [in, channels]
        layer[kernel] = (np.asarray(layer[kernel], np.float64) * per_channel).astype(np.float32)
    return {"params": params, "batch_stats": statistics}


def _copied(tree: Any) -> Any:
    """New dictionaries with the same leaves as NumPy arrays."""
    return {name: _copied(child) for name, child in tree.items()} if isinstance(tree, Mapping) else np.asarray(tree)


def _taken(tree: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """Removes a module's own variables from `tree`, and dictionaries left empty, and returns them in float64."""
    name, *rest = path
    taken = _taken(tree[name], tuple(rest)) if rest else tree.pop(name)
    if rest and not tree[name]:
        del tree[name]
    return taken if rest else {leaf: np.asarray(value, np.float64) for leaf, value in taken.items()}
