"""The backbones: levels' shapes, published parameter counts, names, and values computed by PyTorch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from purinet_jax.network.backbones import VGG16, EfficientNetLite, MobileNetV2, ResNet50
from purinet_jax.network.layers import rematerialised

BACKBONES: dict[str, Callable[..., Any]] = {
    "resnet50": ResNet50,
    "resnet50 undilated": lambda **settings: ResNet50((1, 2, 2, 2), (1, 1, 1, 1), **settings),
    "vgg16": VGG16,
    "mobilenet_v2": MobileNetV2,
    "efficientnet_lite0": EfficientNetLite,
    "efficientnet_lite2": lambda **settings: EfficientNetLite(1.1, 1.2, **settings),
}
STRIDES = {
    "resnet50": (4, 4, 8, 16, 16),
    "resnet50 undilated": (4, 4, 8, 16, 32),
    "vgg16": (4, 4, 8, 16, 16),
    "mobilenet_v2": (4, 8, 16, 32),
    "efficientnet_lite0": (4, 8, 16, 32),
    "efficientnet_lite2": (4, 8, 16, 32),
}
CHANNELS = {
    "resnet50": (64, 256, 512, 1024, 2048),
    "resnet50 undilated": (64, 256, 512, 1024, 2048),
    "vgg16": (128, 256, 512, 512, 512),
    "mobilenet_v2": (24, 32, 96, 320),
    "efficientnet_lite0": (24, 40, 112, 320),
    "efficientnet_lite2": (24, 48, 120, 352),
}


def abstract_variables(name: str) -> Any:
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: BACKBONES[name]().init(jax.random.key(0), images))


@pytest.fixture(scope="module")
def variables_of() -> dict[str, Any]:
    return {name: abstract_variables(name) for name in BACKBONES}


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "mobilenet_v2", "efficientnet_lite0"])
def test_rematerialisation_changes_neither_names_nor_shapes(name: str, variables_of: dict[str, Any]) -> None:
    def init() -> Any:
        return BACKBONES[name]().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), remat=rematerialised)

    jaxpr, shapes = jax.make_jaxpr(init, return_shape=True)()
    assert shapes == variables_of[name]
    assert "checkpoint" in str(jaxpr) or "remat" in str(jaxpr)


def flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def parameter_count(variables: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", BACKBONES)
def test_strides_are_those_of_the_specification(name: str) -> None:
    assert tuple(BACKBONES[name]().strides) == STRIDES[name]


@pytest.mark.parametrize(("height", "width"), [(320, 320), (101, 75), (64, 96)])
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.slow
def test_levels_have_the_images_size_over_their_stride_rounded_up(
    name: str, height: int, width: int, variables_of: dict[str, Any]
) -> None:
    images = jnp.zeros((2, height, width, 3))
    levels = jax.eval_shape(lambda v: BACKBONES[name]().apply(v, images), variables_of[name])
    assert [level.shape for level in levels] == [
        (2, -(-height // stride), -(-width // stride), channels)
        for stride, channels in zip(STRIDES[name], CHANNELS[name], strict=True)
    ]


def mobilenet_parameters() -> int:
    """Sandler et al. 2018, table 2, up to the last bottleneck: kernels, BatchNorms' scales and biases."""
    inputs, total = 32, 9 * 3 * 32 + 2 * 32
    for expansion, outputs, blocks in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(blocks):
            wide = expansion * inputs
            total += (inputs * wide + 2 * wide if expansion > 1 else 0) + 9 * wide + 2 * wide
            total += wide * outputs + 2 * outputs
            inputs = outputs
    return total


# Keras' MobileNetV2 without its top has 2,257,984 parameters, 34,112 of them running statistics; left out
# here are Conv_1 (320 · 1280) and scale and bias of its BatchNorm.
KERAS_MOBILENET = 2_257_984 - 34_112 - 320 * 1280 - 2 * 1280


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 25_557_032 - 2048 * 1000 - 1000),  # torchvision's, without fc
        ("resnet50 undilated", 23_508_032),
        ("vgg16", 14_714_688),
        ("mobilenet_v2", KERAS_MOBILENET),
        # Lite0 has 4,652,008 parameters with its head, Lite2 6,092,072.
        ("efficientnet_lite0", 4_652_008 - 320 * 1280 - 2 * 1280 - 1280 * 1000 - 1000),
        ("efficientnet_lite2", 6_092_072 - 352 * 1280 - 2 * 1280 - 1280 * 1000 - 1000),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int, variables_of: dict[str, Any]) -> None:
    assert parameter_count(variables_of[name]) == count


def test_mobilenets_parameter_count_follows_from_its_table() -> None:
    assert mobilenet_parameters() == KERAS_MOBILENET == 1_811_712


def test_resnet_names_are_torchvisions_with_the_authors_stem(variables_of: dict[str, Any]) -> None:
    params = flat(variables_of["resnet50"]["params"])
    statistics = flat(variables_of["resnet50"]["batch_stats"])
    assert params["layer0/0/kernel"].shape == (7, 7, 3, 64)
    assert params["layer1/0/downsample/0/kernel"].shape == (1, 1, 64, 256)
    assert params["layer3/5/conv2/kernel"].shape == (3, 3, 256, 256)
    assert params["layer4/2/bn3/scale"].shape == statistics["layer4/2/bn3/var"].shape == (2048,)
    assert "layer4/1/downsample/0/kernel" not in params
    assert {name.split("/")[0] for name in params} == {f"layer{i}" for i in range(5)}
    assert [len({n.split("/")[1] for n in params if n.startswith(f"layer{i}/")}) for i in (1, 2, 3, 4)] == [
        3,
        4,
        6,
        3,
    ]
    assert not any(name.endswith("kernel") and name.replace("kernel", "bias") in params for name in params)


def test_vgg_names_are_torchvisions(variables_of: dict[str, Any]) -> None:
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert set(flat(variables_of["vgg16"]["params"])) == {
        f"features/{index}/{leaf}" for index in indices for leaf in ("kernel", "bias")
    }
    assert "batch_stats" not in variables_of["vgg16"]


def test_mobilenet_names_are_keras(variables_of: dict[str, Any]) -> None:
    params = flat(variables_of["mobilenet_v2"]["params"])
    assert {name.split("/")[0] for name in params} == {
        "Conv1",
        "bn_Conv1",
        *(f"expanded_conv_{part}" for part in ("depthwise", "depthwise_BN", "project", "project_BN")),
        *(
            f"block_{i}_{part}"
            for i in range(1, 17)
            for part in ("expand", "expand_BN", "depthwise", "depthwise_BN", "project", "project_BN")
        ),
    }
    assert params["block_3_depthwise/depthwise_kernel"].shape == (3, 3, 144, 1)
    assert params["block_16_project/kernel"].shape == (1, 1, 960, 320)


def test_efficientnet_names_are_those_of_its_pytorch_ports(variables_of: dict[str, Any]) -> None:
    params = flat(variables_of["efficientnet_lite2"]["params"])
    blocks = [name.split("/") for name in params if name.startswith("_blocks/")]
    assert {name.split("/")[0] for name in params} == {"_conv_stem", "_bn0", "_blocks"}
    assert {parts[1] for parts in blocks} == {str(i) for i in range(21)}
    first, rest = ({parts[2] for parts in blocks if (parts[1] == "0") is is_first} for is_first in (True, False))
    assert first == {"_depthwise_conv", "_bn1", "_project_conv", "_bn2"}
    assert rest == first | {"_expand_conv", "_bn0"}
    assert params["_blocks/4/_depthwise_conv/depthwise_kernel"].shape == (5, 5, 144, 1)
    assert params["_blocks/20/_project_conv/kernel"].shape == (1, 1, 1248, 352)


def draw(variables: Any) -> Any:
    """Values for all parameters and statistics, seeded by their index among the sorted names."""

    def value(name: str, index: int, shape: tuple[int, ...]) -> np.ndarray:
        normal = np.random.default_rng(index).standard_normal(shape).astype(np.float32)
        leaf = name.split("/")[-1]
        if leaf == "kernel":
            return normal * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        if leaf == "depthwise_kernel":
            return normal * np.float32(np.sqrt(2 / np.prod(shape[:2])))
        return {"scale": 1, "bias": 0, "mean": 0, "var": 1}[leaf] + np.float32(0.1) * np.tanh(normal)

    names = sorted(flat(variables))
    values = {name: value(name, i, flat(variables)[name].shape) for i, name in enumerate(names)}
    return traverse_util.unflatten_dict(values, sep="/")


def random_image() -> np.ndarray:
    return np.random.default_rng(2021).standard_normal((1, 37, 50, 3)).astype(np.float32)


# Mean, standard deviation, mean of the first row and of the last column of each level, computed in float64 by
# PyTorch 2.13's convolutions, pools (VGG's with ceil_mode) and batch norms on the same weights and image.
PYTORCH = {
    "vgg16": [
        (1.13878, 1.35165, 1.08589, 0.71003),
        (0.90646, 1.28613, 0.69954, 0.60805),
        (0.89141, 1.32402, 0.67863, 0.69443),
        (1.21962, 1.49264, 1.28868, 0.82588),
        (0.24461, 0.37512, 0.29134, 0.24162),
    ],
    "mobilenet_v2": [
        (0.41186, 2.43136, 0.18779, 0.43235),
        (0.42125, 4.60961, 0.71282, 0.15925),
        (0.61613, 4.55942, 0.52157, 0.88015),
        (0.19920, 2.44257, 0.21366, 0.20543),
    ],
    "efficientnet_lite0": [
        (0.14091, 3.05852, -0.14804, 0.47557),
        (-0.53065, 3.54632, -0.42831, -0.69511),
        (0.24048, 3.66118, 0.34346, 0.31381),
        (0.08193, 2.25370, 0.04131, 0.11661),
    ],
    "efficientnet_lite2": [
        (-0.26145, 3.68647, -0.39394, 0.23504),
        (0.34771, 4.07364, 0.03580, 0.06759),
        (0.40990, 4.19784, 0.16500, 0.50875),
        (0.07187, 2.39768, 0.01521, 0.13699),
    ],
    "resnet50": [
        (1.88725, 0.89771, 1.51513, 1.65999),
        (3.52773, 4.19869, 2.77923, 2.91269),
        (18.07356, 20.84543, 13.50039, 13.72171),
        (72.11851, 80.77524, 76.72992, 69.74211),
        (89.79858, 102.97750, 96.78129, 88.15253),
    ],
    "resnet50 undilated": [
        (1.88725, 0.89771, 1.51513, 1.65999),
        (3.52773, 4.19869, 2.77923, 2.91269),
        (18.07356, 20.84543, 13.50039, 13.72171),
        (141.36190, 171.79193, 128.65376, 117.48160),
        (306.17007, 338.09897, 302.42518, 320.08348),
    ],
}


@pytest.mark.parametrize("name", PYTORCH)
@pytest.mark.slow
def test_levels_have_the_values_that_pytorch_computes(name: str, variables_of: dict[str, Any]) -> None:
    variables = draw(variables_of[name])
    levels = jax.jit(lambda v, x: BACKBONES[name]().apply(v, x))(variables, random_image())
    for level, expected in zip(levels, PYTORCH[name], strict=True):
        summary = (level.mean(), level.std(), level[:, 0].mean(), level[:, :, -1].mean())
        np.testing.assert_allclose(summary, expected, rtol=1e-4, atol=1e-4)
