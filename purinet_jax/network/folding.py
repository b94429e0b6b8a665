"""Inference without BatchNorm: where its statistics stand still, it is an affine map of each channel, which the
convolution before it can do as well. Only variables change; the module is the same, and layers know by what is among
their variables (`Conv` and its kind, `BatchNorm` in `purinet_jax.network.layers`).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from purinet_jax.network.layers import BatchNorm, Conv, DepthwiseConv, StridedConv

Path = tuple[str, ...]


class Fold(NamedTuple):
    """A BatchNorm right behind a convolution: the paths of both modules, and the former's epsilon."""

    convolution: Path
    norm: Path
    epsilon: float


def fold_batchnorm(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Folds each BatchNorm of a network into the convolution whose output it normalises.

    Args:
      model: `PurNet`, or any module of this package's layers that takes images [batch, height, width, 3]. It is traced
        once, to see what follows what.
      variables: `{"params": …, "batch_stats": …}`; not changed.

    Returns:
      Variables of NumPy float32 arrays, with which `model.apply` (without `train`) computes the same up to rounding:
      the convolutions have other kernels and a bias, the BatchNorms nothing. One that does not stand right behind a
      convolution stays as it is.
    """
    return apply_folds(find_folds(model, variables), variables)


def find_folds(model: nn.Module, variables: Mapping[str, Any]) -> tuple[Fold, ...]:
    """Every BatchNorm of `model` that takes a convolution's output, in their order. Nothing else may take it."""
    outputs: dict[int, tuple[Path, Any]] = {}  # by identity; the outputs are kept, lest another takes its place
    folds: list[Fold] = []

    def watch(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, BatchNorm):
            made = outputs.get(id(arguments[0]))
            if made is not None and module.has_variable("batch_stats", "mean"):
                folds.append(Fold(made[0], module.path, module.epsilon))
            return arguments[0] + 0  # something of the same shape: the real one takes long to trace
        result = call(*arguments, **keywords)
        if isinstance(module, Conv | DepthwiseConv | StridedConv):
            outputs[id(result)] = module.path, result
        return result

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)  # what follows what does not depend on it
    with nn.intercept_methods(watch):
        jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    return tuple(folds)


def apply_folds(folds: tuple[Fold, ...], variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with `folds` folded, as `fold_batchnorm` returns them; computed in float64."""
    params, statistics = (flatten_dict(variables.get(name, {})) for name in ("params", "batch_stats"))

    def take(flat: dict[Path, Any], path: Path) -> np.ndarray:
        return np.asarray(flat.pop(path), np.float64)

    for convolution, norm, epsilon in folds:
        scale, shift = take(params, (*norm, "scale")), take(params, (*norm, "bias"))
        mean, variance = take(statistics, (*norm, "mean")), take(statistics, (*norm, "var"))
        factor = scale / np.sqrt(variance + epsilon)
        bias = np.asarray(params.get((*convolution, "bias"), 0.0), np.float64)
        params[(*convolution, "bias")] = (shift + (bias - mean) * factor).astype(np.float32)
        depthwise = (*convolution, "depthwise_kernel")
        kernel = depthwise if depthwise in params else (*convolution, "kernel")
        per_channel = factor[:, None] if kernel == depthwise else factor  # [channels, 1] or [in, channels]
        params[kernel] = (np.asarray(params[kernel], np.float64) * per_channel).astype(np.float32)
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(statistics)}
