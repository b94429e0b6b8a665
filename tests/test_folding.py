"""Folding of BatchNorm: equal outputs and no BatchNorm left, for every kind of layer and network."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.tiny import tiny_model, tiny_variables

from purinet_jax.network.config import ModelConfig
from purinet_jax.network.folding import find_folds, fold_batchnorm
from purinet_jax.network.layers import BatchNorm, Conv, DepthwiseConv


def drawn(variables: Any) -> Any:
    """Random values, as a fresh network's BatchNorms are identities; variances and scales are positive."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        if path[-1].key in ("var", "scale", "slope"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if leaf.ndim == 1:
            return (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)
        fan_in = np.prod(leaf.shape[:2] if path[-1].key == "depthwise_kernel" else leaf.shape[:-1])
        return (np.sqrt(2 / fan_in) * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


class EveryConvolution(nn.Module):
    """Each kind of convolution followed by a BatchNorm, and one BatchNorm that follows none."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        convolutions = (
            Conv(4, 3, dilation=2),
            Conv(5, 1, use_bias=False),
            Conv(6, 3, 2, use_bias=False, same=True),
            DepthwiseConv(5, 2),
            DepthwiseConv(3, 1),
        )
        for convolution in convolutions:
            x = jax.nn.relu6(BatchNorm(1e-3)(convolution(x)))
        return BatchNorm()(x)


def test_batchnorm_is_folded_into_every_kind_of_convolution() -> None:
    model, x = EveryConvolution(), np.random.default_rng(1).standard_normal((2, 9, 12, 3)).astype(np.float32)
    variables = drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), x)))
    before = jax.tree.map(np.copy, variables)
    folded = fold_batchnorm(model, variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert list(folded["batch_stats"]) == ["BatchNorm_5"]  # it follows an activation
    assert {name for name in folded["params"] if name.startswith("BatchNorm")} == {"BatchNorm_5"}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(folded))
    forward = jax.jit(lambda variables: model.apply(variables, x))
    expected: Any = forward(variables)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(forward(folded), expected, rtol=1e-5, atol=1e-5)
    assert fold_batchnorm(model, folded).keys() == folded.keys()
    jax.tree.map(np.testing.assert_array_equal, fold_batchnorm(model, folded), folded)  # folding twice changes nothing


def test_folded_network_predicts_the_same_maps() -> None:
    model, variables = tiny_model(), drawn(tiny_variables())
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 3)).astype(np.float32)
    forward = jax.jit(lambda variables: jax.tree.map(jax.nn.sigmoid, model.apply(variables, x)))
    folded = fold_batchnorm(model, variables)
    assert folded["batch_stats"] == {}
    for expected, found in zip(jax.tree.leaves(forward(variables)), jax.tree.leaves(forward(folded)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(Exception, match="scale"):  # a folded network has no statistics to train with
        jax.eval_shape(lambda: model.apply(folded, x, train=True, mutable=["batch_stats"]))


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "mobilenet_v2", "resnet50"])
def test_no_batchnorm_is_left_in_any_network(backbone: str) -> None:
    released = backbone == "resnet50"
    config = {"backbone": backbone, "channels": 4, "attention": released, "light": not released}
    config["context"] = backbone == "efficientnet_lite0"
    model = ModelConfig(**config).build()
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    folds = find_folds(model, variables)
    norms = {path[1:-1] for path in flatten_dict(variables) if path[-1] == "mean"}
    assert len(norms) > 50
    assert [fold.norm for fold in folds] == list(dict.fromkeys(fold.norm for fold in folds))
    assert {fold.norm for fold in folds} == norms
    assert len({fold.convolution for fold in folds}) == len(folds)
