"""The jaxpr of a network's finest map, and the parameters that it uses."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr_consts

from purinet_jax.network.cpu.platform import for_all_platforms
from purinet_jax.network.model import normalise
from purinet_jax.prediction.predictor import Predictor


def traced_map(predictor: Predictor, images: jax.ShapeDtypeStruct) -> tuple[ClosedJaxpr, dict[str, np.ndarray]]:
    """Traces a predictor's network with BatchNorm folded.

    Args:
      predictor: the network.
      images: shape and dtype: [batch, height, width, 3], uint8 RGB or normalised float32.

    Returns:
      The jaxpr of parameters and then images → finest map, float32 [batch, height, width, 1] in [0, 1]; the names and
      values of these parameters, in its order.
    """
    model = predictor.model

    def finest_map(variables: Mapping[str, Any], images: Array) -> Array:
        inputs = normalise(images, model.backbone.pixel_mean, model.backbone.pixel_std)
        maps: Any = model.apply(variables, inputs)
        return jax.nn.sigmoid(maps.saliency[0])

    with for_all_platforms():
        traced = jax.make_jaxpr(finest_map)(predictor.folded, images)
    jaxpr, constants, inputs = dce_jaxpr_consts(traced.jaxpr, [True])
    assert inputs[-1], "the map must depend on the images"
    leaves = jax.tree.leaves_with_path(predictor.folded)
    parameters = {
        "/".join(key.key for key in path[1:]): np.asarray(leaf)
        for (path, leaf), used in zip(leaves, inputs[:-1], strict=True)
        if used
    }
    consts = [constant for constant, used in zip(traced.consts, constants, strict=True) if used]
    return ClosedJaxpr(jaxpr, consts), parameters
