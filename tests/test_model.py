"""PurNet on every backbone: sizes, names and counts by shape alone; behaviour on a small backbone."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import Array

from purinet_jax.errors import InputError
from purinet_jax.network.attention import promotion_attention, rectification_attention
from purinet_jax.network.backbones import BACKBONES, ResNet50
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.layers import CBP, BatchNorm, Conv, Norm, PredictionHead, Upsample
from purinet_jax.network.model import ATTENTIONS, Maps, PurNet
from purinet_jax.training.optim import parameter_group

KINDS = Maps._fields
# Every level's maps with both attentions; stage 1's saliency; saliency with one attention, by its name.
Composed = tuple[list[list[Array]], list[Array], dict[str, list[Array]]]


def abstract_variables(model: PurNet) -> Any:
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images))


def flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def draw(variables: Any) -> Any:
    rng = np.random.default_rng(0)

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape)
        leaf = name.split("/")[-1]
        if "kernel" in leaf:
            return normal * np.sqrt(1 / np.prod(shape[:-1]))
        return {"scale": 1, "bias": 0, "mean": 0, "var": 1, "slope": 0.25}[leaf] + 0.1 * np.tanh(normal)

    values = {name: value(name, leaf.shape).astype(np.float32) for name, leaf in flat(variables).items()}
    return traverse_util.unflatten_dict(values, sep="/")


class SmallBackbone(nn.Module):
    """Three levels at strides 2, 2 and 4, as any backbone returns them."""

    strides: ClassVar[tuple[int, ...]] = (2, 2, 4)

    @nn.compact
    def __call__(self, images: Array, norm: Norm = BatchNorm, remat: Any = None) -> tuple[Array, ...]:
        first = CBP(3, (3,), norm=norm, name="first")(images)[:, ::2, ::2]
        second = nn.relu(Conv(4, 3, name="second")(first))
        return first, second, nn.relu(Conv(5, 3, 2, name="third")(second))


SIZE = (13, 18)
SMALL = PurNet(SmallBackbone(), channels=4)


@pytest.fixture(scope="module")
def variables() -> Any:
    return draw(abstract_variables(SMALL))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, *SIZE, 3)).astype(np.float32)


@jax.jit
def evaluate(variables: Any, images: Any) -> Any:
    return SMALL.apply(variables, images, mutable=["intermediates"])


@pytest.fixture(scope="module")
def forward(variables: Any, images: np.ndarray) -> tuple[Maps, dict[str, Array]]:
    """Maps and intermediates in eval mode."""
    maps, updated = evaluate(variables, images)
    return maps, updated["intermediates"]


@pytest.fixture(scope="module")
def abstract() -> dict[tuple[str, bool], Any]:
    return {
        (name, attention): abstract_variables(ModelConfig(name, 8, attention).build())
        for name in BACKBONES
        for attention in (True, False)
    }


def test_the_released_network_has_the_released_number_of_parameters() -> None:
    variables = abstract_variables(ModelConfig().build())
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 35_528_122
    sizes = dict.fromkeys(("backbone", "purificatory", "promotion", "rectification"), 0)
    for name, tree in variables["params"].items():
        sizes[parameter_group(name)] += sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert sizes["backbone"] == 23_508_032
    assert sizes["promotion"] < sizes["purificatory"] < sizes["rectification"]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("size", [(33, 47), (50, 70)])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.slow
def test_maps_have_the_images_size_on_every_backbone(
    name: str, attention: bool, size: tuple[int, int], abstract: dict[tuple[str, bool], Any]
) -> None:
    model = ModelConfig(name, 8, attention).build(dtype=jnp.bfloat16)
    images = jnp.zeros((2, *size, 3))
    maps = jax.eval_shape(lambda v: model.apply(v, images), abstract[name, attention])
    levels = len(model.backbone.strides)
    assert [len(kind) for kind in maps] == ([levels] * 4 if attention else [levels, 0, 0, 0])
    for leaf in jax.tree.leaves(maps):
        assert (leaf.shape, leaf.dtype) == ((2, *size, 1), jnp.float32)


@pytest.mark.parametrize("name", BACKBONES)
def test_stage_one_parameters_are_a_subset_of_the_full_trees(name: str, abstract: dict[tuple[str, bool], Any]) -> None:
    full, first = flat(abstract[name, True]), flat(abstract[name, False])
    assert {key: leaf.shape for key, leaf in first.items()}.items() <= {
        key: leaf.shape for key, leaf in full.items()
    }.items()
    assert {parameter_group(key.split("/")[1]) for key in first} == {"backbone", "purificatory"}
    levels = len(BACKBONES[name]().strides)
    missing = {key.split("/")[1] for key in set(full) - set(first)}
    assert {name for name in missing if parameter_group(name) == "purificatory"} == {
        f"feature_upscore{level}_2" for level in range(1, levels + 1)
    }


def test_transposed_convolutions_have_the_size_of_the_specification(
    abstract: dict[tuple[str, bool], Any],
) -> None:
    params = flat(abstract["resnet50", True]["params"])
    found = {key: leaf.shape[0] for key, leaf in params.items() if key.endswith("transposed_kernel")}
    expected = {
        f"{prefix}feature_upscore{level}/3/transposed_kernel": 4 for prefix in ("", "oa_", "ea_") for level in (3, 4)
    }
    for level, size in enumerate((8, 8, 16, 32, 32), 1):
        expected |= {f"{prefix}predict{level}/7/transposed_kernel": size for prefix in ("", "oa_")}
        expected |= {
            f"{name}{level}_{suffix}_upscore/transposed_kernel": size
            for name, suffix in (("ea_predict", "g"), ("ea_e_predict", "e"))
        }
    assert found == expected


@pytest.fixture(scope="module")
def composed(variables: Any, forward: tuple[Maps, dict[str, Array]]) -> Composed:
    """The specification written out on the small backbone's levels: all maps by level, and stage 1's."""
    levels = [forward[1][f"backbone{level}"] for level in (1, 2, 3)]

    def part(name: str, module: nn.Module, *arguments: Any) -> Any:
        named = {kind: tree[name] for kind, tree in variables.items() if name in tree}
        return module.apply(named, *arguments)

    def cbp(name: str, x: Array, *sizes: int, upsample: int = 1) -> Array:
        return part(name, CBP(4, sizes, upsample), x)

    def upscored(name: str, x: Array, stride: int) -> Array:
        logits = part(name, PredictionHead(4, stride, None), x)
        return part(f"{name}_upscore", Upsample(stride), logits)[:, : SIZE[0], : SIZE[1]]

    def pyramid(prefix: str) -> list[Array]:
        f3 = cbp(f"{prefix}convert3", levels[2], 1)
        above = cbp(f"{prefix}feature_upscore3", f3, 3, upsample=2)
        assert above.shape[1:3] == (8, 10)
        f2 = cbp(f"{prefix}convert2", levels[1], 1) + above[:, :7, :9]
        f1 = cbp(f"{prefix}convert1", levels[0], 1) + cbp(f"{prefix}feature_upscore2", f2, 3)
        return [f1, f2, f3]

    def compose() -> Composed:
        rows, first_stage = [], []
        alone: dict[str, list[Array]] = {"promotion": [], "rectification": []}
        pyramids = zip(pyramid(""), pyramid("oa_"), pyramid("ea_"), strict=True)
        for level, (x, promotion, rectification) in enumerate(pyramids, 1):
            stride = (2, 2, 4)[level - 1]
            head = PredictionHead(4, stride, SIZE)
            first_stage.append(part(f"predict{level}", head, x))
            a = promotion_attention(promotion)
            g = cbp(f"ea_pre_predict{level}_g", rectification, 3, 3, 1)
            e = cbp(f"ea_e_pre_predict{level}_e", rectification, 3, 3, 1)
            r = rectification_attention(g, e)
            unpromoted = cbp(f"feature_upscore{level}_2", x, 3)
            x = cbp(f"feature_upscore{level}_2", a * x + x, 3)
            for kind, features in (("promotion", x), ("rectification", r * unpromoted + unpromoted)):
                alone[kind].append(part(f"predict{level}", head, features))
            rows.append(
                [
                    part(f"predict{level}", head, r * x + x),
                    part(f"oa_predict{level}", head, a * promotion + promotion),
                    upscored(f"ea_predict{level}_g", r * g + g, stride),
                    upscored(f"ea_e_predict{level}_e", e - g, stride),
                ]
            )
        return rows, first_stage, alone

    return jax.jit(compose)()


def test_forward_follows_the_specification_level_by_level(
    forward: tuple[Maps, dict[str, Array]], composed: Composed
) -> None:
    for level, row in enumerate(composed[0]):
        for kind, expected in zip(KINDS, row, strict=True):
            np.testing.assert_allclose(
                getattr(forward[0], kind)[level], expected, rtol=1e-4, atol=1e-5, err_msg=f"{kind}{level + 1}"
            )


def test_stage_one_predicts_directly_from_the_pyramid_and_needs_no_other_parameters(
    variables: Any, images: np.ndarray, composed: Composed
) -> None:
    model = SMALL.clone(attention=())
    names = abstract_variables(model)["params"]
    params = {name: tree for name, tree in variables["params"].items() if name in names}
    assert len(params) == len(names) < len(variables["params"])
    maps = jax.jit(model.apply)({**variables, "params": params}, images)
    assert [len(kind) for kind in maps] == [3, 0, 0, 0]
    for actual, expected in zip(maps.saliency, composed[1], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_one_attention_without_the_other(
    attention: str, variables: Any, images: np.ndarray, forward: tuple[Maps, dict[str, Array]], composed: Composed
) -> None:
    model = SMALL.clone(attention=(attention,))
    names = abstract_variables(model)["params"]
    params = {name: tree for name, tree in variables["params"].items() if name in names}
    assert len(params) == len(names)
    prefix = {"promotion": "ea_", "rectification": "oa_"}[attention]
    assert {name for name in variables["params"] if name not in names} == {
        name for name in variables["params"] if name.startswith(prefix)
    }
    maps = jax.jit(model.apply)({**variables, "params": params}, images)
    assert [len(kind) for kind in maps] == ([3, 3, 0, 0] if attention == "promotion" else [3, 0, 3, 3])
    for actual, expected in zip(maps.saliency, composed[2][attention], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    for actual, expected in zip(getattr(maps, attention), getattr(forward[0], attention), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_finest_map_alone_is_equal_and_computes_less(
    variables: Any, images: np.ndarray, forward: tuple[Maps, dict[str, Array]]
) -> None:
    alone = jax.jit(lambda v, x: SMALL.apply(v, x).saliency[0])
    np.testing.assert_allclose(alone(variables, images), forward[0].saliency[0], rtol=1e-5, atol=1e-6)
    flops, all_flops = (f.lower(variables, images).cost_analysis()["flops"] for f in (alone, evaluate))
    assert flops < 0.7 * all_flops


def test_evaluation_treats_each_image_alone(
    variables: Any, images: np.ndarray, forward: tuple[Maps, dict[str, Array]]
) -> None:
    others = np.stack([images[1], 5 + images[0]])
    maps, _ = evaluate(variables, others)
    for a, b in zip(jax.tree.leaves(maps), jax.tree.leaves(forward[0]), strict=True):
        np.testing.assert_allclose(a[0], b[1], rtol=1e-4, atol=1e-5)


def test_training_moves_every_statistic_and_normalises_by_the_batch(
    variables: Any, images: np.ndarray, forward: tuple[Maps, dict[str, Array]]
) -> None:
    train = jax.jit(lambda v, x: SMALL.apply(v, x, train=True, mutable=["batch_stats"]))
    maps, updated = train(variables, images)
    before, after = flat(variables["batch_stats"]), flat(updated["batch_stats"])
    assert set(before) == set(after)
    assert all((np.asarray(after[name]) != before[name]).all() for name in before)
    assert not np.allclose(maps.saliency[0], forward[0].saliency[0], atol=1e-3)
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(maps)])).all()


def test_bfloat16_maps_are_float32_and_near_those_of_float32(
    variables: Any, images: np.ndarray, forward: tuple[Maps, dict[str, Array]]
) -> None:
    model = SMALL.clone(dtype=jnp.bfloat16)
    maps, updated = jax.eval_shape(lambda v: model.apply(v, images, mutable=["intermediates"]), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(maps)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(updated["intermediates"])} == {jnp.dtype("bfloat16")}
    saliency = jax.jit(lambda v, x: model.apply(v, x).saliency[0])(variables, images)
    expected = forward[0].saliency[0]
    assert saliency.dtype == jnp.float32
    np.testing.assert_allclose(saliency, expected, atol=0.1 * float(np.abs(expected).max()))


def test_intermediates_come_back_only_on_request(
    variables: Any, images: np.ndarray, forward: tuple[Maps, dict[str, Array]]
) -> None:
    assert isinstance(jax.eval_shape(SMALL.apply, variables, images), Maps)
    _, updated = jax.eval_shape(lambda v: SMALL.apply(v, images, train=True, mutable=["batch_stats"]), variables)
    assert set(updated) == {"batch_stats"}
    assert set(variables) == {"params", "batch_stats"}
    sizes = {1: (7, 9), 2: (7, 9), 3: (4, 5)}
    expected = {f"backbone{level}": (2, *size, 2 + level) for level, size in sizes.items()}
    for kind in ("promotion", "rectification"):
        expected |= {f"{kind}_attention{level}": (2, *size, 4) for level, size in sizes.items()}
    assert {name: x.shape for name, x in forward[1].items()} == expected


def test_scaled_promotion_has_mean_one_and_the_same_parameters(
    variables: Any, images: np.ndarray, forward: tuple[Maps, dict[str, Array]]
) -> None:
    model = SMALL.clone(scaled_promotion=True)

    @jax.jit
    def apply(variables: Any, images: Any) -> Any:
        maps, updated = model.apply(variables, images, mutable=["intermediates"])
        attentions = [updated["intermediates"][f"promotion_attention{level}"] for level in (1, 2, 3)]
        return maps.saliency[0], maps.rectification[0], attentions

    saliency, rectification, attentions = apply(variables, images)
    for level, scaled in enumerate(attentions, 1):
        released = forward[1][f"promotion_attention{level}"]
        np.testing.assert_allclose(scaled.mean((1, 2, 3)), 1, rtol=1e-4)
        np.testing.assert_allclose(scaled, released * released[0].size, rtol=1e-4)
    assert not np.allclose(saliency, forward[0].saliency[0], atol=1e-3)
    np.testing.assert_allclose(rectification, forward[0].rectification[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(
    "settings", [{}, {"channels": 16, "attention": (), "scaled_promotion": True, "light": True, "context": True}]
)
def test_a_models_configuration_builds_it_again(name: str, settings: dict[str, Any]) -> None:
    model = ModelConfig.from_dict({"backbone": name, **settings}).build()
    config = ModelConfig.from_model(model)
    assert config.to_dict() == {
        "backbone": name,
        "channels": 128,
        "attention": ("promotion", "rectification"),
        "scaled_promotion": False,
        "light": False,
        "context": False,
        **settings,
    }
    assert config.build() == model


def test_the_default_configuration_is_the_released_network() -> None:
    model = ModelConfig().build(axis_name="devices", dtype=jnp.bfloat16)
    assert model == PurNet(ResNet50(), axis_name="devices", dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": None}, r"^model\.backbone: None is none of efficientnet_lite0, .*, resnet50, vgg16$"),
        ({"backbone": "resnet101"}, r"^model\.backbone: 'resnet101' is none of"),
        ({"backbone": "vgg16", "width": 64}, r"^model\.width: no such setting$"),
        ({"backbone": "vgg16", "dtype": "bfloat16"}, r"^model\.dtype: no such setting$"),
    ],
)
def test_configuration_errors_name_the_setting(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig.from_dict(config)


def test_the_light_network_has_no_transposed_convolutions_and_shorter_branches(
    variables: Any, images: np.ndarray
) -> None:
    light = SMALL.clone(light=True)
    names = set(flat(abstract_variables(light)))
    assert not any("transposed_kernel" in name for name in names)
    assert not any("ea_pre_predict1_g/3" in name for name in names)
    assert names < set(flat(variables))
    maps = jax.jit(light.apply)(draw(abstract_variables(light)), images)
    for kind in maps:
        assert [x.shape for x in kind] == [(2, *SIZE, 1)] * 3


def test_context_is_one_more_level(variables: Any, images: np.ndarray) -> None:
    model = SMALL.clone(light=True, context=True)
    abstract = abstract_variables(model)
    added = {name.split("/")[1] for name in flat(abstract)} - {name.split("/")[1] for name in flat(variables)}
    assert "context" in added
    assert all(name == "context" or "4" in name for name in added)
    assert parameter_group("context") == "purificatory"
    drawn = draw(abstract)
    apply = jax.jit(lambda images: model.apply(drawn, images).saliency)
    maps = apply(images)
    assert [x.shape for x in maps] == [(2, *SIZE, 1)] * 4


def test_one_corner_reaches_the_opposite_one_by_context_alone() -> None:
    images = np.random.default_rng(0).standard_normal((1, 96, 96, 3)).astype(np.float32)
    moved = images.copy()
    moved[:, 0, 0] += 10
    for context in (False, True):
        model = SMALL.clone(light=True, attention=(), context=context)
        variables = draw(abstract_variables(model))
        apply = jax.jit(lambda x, model=model, variables=variables: model.apply(variables, x).saliency[0])
        reached = bool((apply(moved) != apply(images))[:, -4:, -4:].any())
        assert reached is context
