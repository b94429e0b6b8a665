"""The floating point operations of a forward pass, counted from the shapes of its convolutions and matrix products.
Elementwise operations, a few percent, are not counted, nor what a compiler adds or rematerialisation repeats.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from purinet_jax.network.cpu.platform import for_all_platforms
from purinet_jax.network.model import PurNet


@functools.cache
def forward_flops(model: PurNet, size: int, finest_only: bool = False) -> int:
    """Floating point operations (two per multiply-add) of one image of `size` × `size` pixels, for all its maps or for
    its finest saliency map alone."""
    model = model.clone(axis_name=None, remat=False)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with for_all_platforms():
        jaxpr = jax.make_jaxpr(model.apply)(variables, images).jaxpr
    if finest_only:  # the first of `Maps`
        jaxpr, _ = dce_jaxpr(jaxpr, [index == 0 for index in range(len(jaxpr.outvars))])
    return count_flops(jaxpr)


def train_step_flops(model: PurNet, size: int) -> int:
    """Floating point operations of a train step per image: by convention, three times the forward pass's, as the
    gradients of activations and of kernels take about as many each."""
    return 3 * forward_flops(model, size)


def count_flops(jaxpr: Any) -> int:
    """Floating point operations of a jaxpr's convolutions and matrix products, in its functions and loops too; of
    branches, the one with most."""
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        out = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            total += 2 * out * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * out * math.prod(kernel) // features
        elif name == "cond":
            total += max(count_flops(branch.jaxpr) for branch in parameters["branches"])
        else:
            repeats = parameters.get("length", 1) if name == "scan" else 1
            for value in parameters.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += repeats * count_flops(inner)
    return total
