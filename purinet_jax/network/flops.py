"""How much work a forward pass is: the floating point operations of its convolutions and matrix products, counted from
shapes. What is elementwise is a few percent and not counted; nor is what a compiler adds or rematerialisation repeats.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from purinet_jax.network.cpu.platform import for_all_platforms
from purinet_jax.network.model import PurNet, without_device_axis


@functools.cache
def forward_flops(model: PurNet, size: int) -> int:
    """Floating point operations (two to a multiply-add) of all maps of one image of `size` × `size` pixels."""
    model = without_device_axis(model).clone(remat=False)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with for_all_platforms():
        return count_flops(jax.make_jaxpr(model.apply)(variables, images).jaxpr)


def train_step_flops(model: PurNet, size: int) -> int:
    """Of one image in a train step: three forward passes' worth, as is usual (gradients of activations and of kernels
    are each about as much work as the pass itself)."""
    return 3 * forward_flops(model, size)


def count_flops(jaxpr: Any) -> int:
    """Floating point operations of a jaxpr's convolutions and matrix products, those in its functions and loops too; of
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
