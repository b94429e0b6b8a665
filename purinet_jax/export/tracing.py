"""The network as a jaxpr with no more in it than the finest map needs, and the parameters that are left."""

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
    """Traces how a predictor's network answers images.

    Args:
      predictor: the network; BatchNorm is folded.
      images: shape and type: [batch, height, width, 3], uint8 RGB or, normalised already, float32.

    Returns:
      The jaxpr of parameters and then images → finest map, float32 [batch, height, width, 1] in [0, 1]; the names and
      values of these parameters, in its order.
    """
    model = predictor.model

    def finest_map(variables: Mapping[str, Any], images: Array) -> Array:
        inputs = normalise(images, model.backbone.pixel_mean, model.backbone.pixel_std)
        answers: Any = model.apply(variables, inputs)
        return jax.nn.sigmoid(answers.saliency[0])

    with for_all_platforms():
        whole = jax.make_jaxpr(finest_map)(predictor.folded, images)
    jaxpr, constants, inputs = dce_jaxpr_consts(whole.jaxpr, [True])
    assert inputs[-1], "the answer must depend on the images"
    leaves = jax.tree.leaves_with_path(predictor.folded)
    parameters = {
        "/".join(key.key for key in path[1:]): np.asarray(leaf)
        for (path, leaf), used in zip(leaves, inputs[:-1], strict=True)
        if used
    }
    consts = [constant for constant, used in zip(whole.consts, constants, strict=True) if used]
    return ClosedJaxpr(jaxpr, consts), parameters
