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
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with for_all_platforms():  # initialised in the same trace, in which drawing a tensor takes no product
        jaxpr = jax.make_jaxpr(lambda images: model.init_with_output(jax.random.key(0), images)[0])(images).jaxpr
    if finest_only:  # the first of `Maps`
        jaxpr, _ = dce_jaxpr(jaxpr, [index == 0 for index in range(len(jaxpr.outvars))])
    return _count_flops(jaxpr)


def train_step_flops(model: PurNet, size: int) -> int:
    """Floating point operations of a train step per image: by convention, three times the forward pass's, as the
    gradients of activations and of kernels take about as many each."""
    return 3 * forward_flops(model, size)


def _count_flops(jaxpr: Any) -> int:
    """Floating point operations of a jaxpr's convolutions and matrix products, in its functions too; it has no loops
    or branches."""
    total = 0
    for equation in jaxpr.eqns:
        parameters = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            reduced = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * reduced
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
        else:
            inner = (getattr(value, "jaxpr", value) for value in parameters.values())
            total += sum(_count_flops(value) for value in inner if hasattr(value, "eqns"))
    return total
