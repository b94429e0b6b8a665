"""Conversion: names and layouts, round trips byte by byte, and error messages for files that do not fit."""

import dataclasses
import importlib.util
import itertools
import json
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.released import RELEASED

from purinet_jax.errors import InputError
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.model import ATTENTIONS
from purinet_jax.training.configurations import load_config
from purinet_jax.training.train import train
from purinet_jax.weights.convert import from_authors, from_backbone, to_authors
from purinet_jax.weights.files import convert_file, load_file, load_variables, save_variables, stored_size
from purinet_jax.weights.tensor_files import read_metadata, read_tensors, write_tensors
from purinet_jax.weights.variables import BackboneConfig

GOLDEN = Path(__file__).with_name("fixtures") / "golden"
# The backbone with the fewest parameters, and a decoder of two channels.
SMALL = ModelConfig("mobilenet_v2", 2)
VGG_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)

Tensors = dict[str, np.ndarray]


@cache
def reference_weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_weights", GOLDEN / "reference_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest() -> dict[str, tuple[int, ...]]:
    names = json.loads((GOLDEN / "state_dict_manifest.json").read_text())
    return {name: tuple(shape) for name, shape in names.items()}


def draw(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Cheap values, no two tensors alike; the counts are integers that float32 cannot hold."""
    tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.array(2**40 + index, np.int64)
        else:
            tensors[name] = index + np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return tensors


def small_variables(**changes: Any) -> tuple[dict[str, Any], ModelConfig]:
    config = dataclasses.replace(SMALL, **changes)
    model = config.build()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    leaves, tree = jax.tree.flatten(shapes)
    generator = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [generator.random(x.shape, np.float32) for x in leaves]), config


def stem_to_torchvision(name: str) -> str:
    return name.replace("layer0.0.", "conv1.").replace("layer0.1.", "bn1.")


def assert_same(got: Any, wanted: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_the_authors_file_survives_the_round_trip(tmp_path: Path) -> None:
    """All 1,200 tensors of the golden outputs' weights: to our file and back, byte by byte."""
    state = reference_weights().state_dict()
    for index, name in enumerate(state):
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(index, np.int64)
    theirs, ours, again = (tmp_path / f"{name}.safetensors" for name in ("stage3", "ours", "again"))
    write_tensors(theirs, state)
    assert convert_file(theirs, ours).splitlines() == [
        f"{theirs}: the authors' names: PurNet on resnet50, 128 channels, with attention, 35,528,122 parameters",
        f"{ours}: 1,200 tensors written, purinet names",
    ]
    assert "1,200 tensors written, authors names" in convert_file(ours, again, "authors")
    assert again.read_bytes() == theirs.read_bytes()
    assert read_tensors(theirs).keys() == manifest().keys()

    variables, config = load_variables(ours)
    assert config == RELEASED
    params, stats = variables["params"], variables["batch_stats"]
    # A convolution's [out, in, height, width], a transposed one's [in, out, height, width] → [height, width,
    # in, out]
    for leaf, name, axes in (
        (params["convert5"]["0"]["kernel"], "convert5.0.weight", (2, 3, 1, 0)),
        (params["backbone"]["layer0"]["0"]["kernel"], "layer0.0.weight", (2, 3, 1, 0)),
        (params["feature_upscore4"]["3"]["transposed_kernel"], "feature_upscore4.3.weight", (2, 3, 0, 1)),
        (params["ea_predict5_g_upscore"]["transposed_kernel"], "ea_predict5_g_upscore.weight", (2, 3, 0, 1)),
        (params["convert5"]["1"]["scale"], "convert5.1.weight", (0,)),
        (params["convert5"]["2"]["slope"], "convert5.2.weight", (0,)),
        (params["oa_predict1"]["6"]["bias"], "oa_predict1.6.bias", (0,)),
        (stats["convert5"]["1"]["mean"], "convert5.1.running_mean", (0,)),
        (
            stats["backbone"]["layer1"]["0"]["downsample"]["1"]["var"],
            "layer1.0.downsample.1.running_var",
            (0,),
        ),
    ):
        np.testing.assert_array_equal(leaf, state[name].transpose(axes), err_msg=name)


def test_the_names_tell_the_stage() -> None:
    only_purificatory = {name: shape for name, shape in manifest().items() if not re.match(r"oa_|ea_|.*_2\.", name)}
    tensors = draw(only_purificatory)
    variables, config = from_authors(tensors)
    assert config == dataclasses.replace(RELEASED, attention=())
    counts = {name: tensor for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}
    back = to_authors(variables, counts)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("backbone", "attention"),
    [
        *itertools.product(("efficientnet_lite0", "mobilenet_v2", "vgg16"), ((), ATTENTIONS)),
        *(("mobilenet_v2", (attention,)) for attention in ATTENTIONS),
    ],
)
@pytest.mark.slow
def test_every_network_survives_the_round_trip(backbone: str, attention: tuple[str, ...]) -> None:
    variables, config = small_variables(backbone=backbone, attention=attention)
    tensors = to_authors(variables)
    counts = {name: tensor for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}
    assert counts
    assert all(count.shape == () and count.dtype == np.int64 and count == 0 for count in counts.values())
    again, recognised = from_authors(tensors)
    assert recognised == config
    assert_same(again, variables)
    without_counts = {name: tensor for name, tensor in tensors.items() if name not in counts}
    assert_same(from_authors(without_counts)[0], variables)


def test_the_laterals_tell_the_channels() -> None:
    variables, config = small_variables(channels=3, attention=())
    assert from_authors(to_authors(variables))[1] == config


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floating_types_become_float32(dtype: Any) -> None:
    variables, _ = small_variables(attention=())
    tensors = {
        name: tensor.astype(dtype) if tensor.dtype == np.float32 else tensor
        for name, tensor in to_authors(variables).items()
    }
    wanted = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), variables)
    assert_same(from_authors(tensors)[0], wanted)


def test_torchvision_resnet50() -> None:
    """The published file's names, with and without the counts that files before PyTorch 0.4.1 do not have."""
    backbone = draw({name: shape for name, shape in manifest().items() if name.startswith("layer")})
    theirs = {stem_to_torchvision(name): tensor for name, tensor in backbone.items()}
    assert {"conv1.weight", "bn1.running_mean", "layer4.2.conv3.weight"} <= theirs.keys()
    theirs |= draw({"fc.weight": (1000, 2048), "fc.bias": (1000,)})
    variables, config, dropped = from_backbone(theirs)
    assert config == BackboneConfig("resnet50")
    assert dropped == ["fc.weight", "fc.bias"]
    assert list(variables["params"]) == list(variables["batch_stats"]) == ["backbone"]
    back = to_authors(variables, backbone)
    assert back.keys() == backbone.keys()
    for name, tensor in backbone.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)

    older = {name: tensor for name, tensor in theirs.items() if "num_batches" not in name}
    assert_same(from_backbone(older)[0], variables)
    under_the_authors_names, _, nothing = from_backbone(backbone)
    assert_same(under_the_authors_names, variables)
    assert nothing == []


def vgg16() -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(VGG_CONVOLUTIONS):
        shapes[f"features.{layer}.weight"] = (VGG_WIDTHS[i + 1], VGG_WIDTHS[i], 3, 3)
        shapes[f"features.{layer}.bias"] = (VGG_WIDTHS[i + 1],)
    return draw(shapes)


def test_torchvision_vgg16(tmp_path: Path) -> None:
    theirs = vgg16()
    classifier = draw({"classifier.0.bias": (4096,), "classifier.6.weight": (1000, 2)})
    variables, config, dropped = from_backbone(theirs | classifier)
    assert config == BackboneConfig("vgg16")
    assert dropped == list(classifier)
    kernel = variables["params"]["backbone"]["features"]["0"]["kernel"]
    np.testing.assert_array_equal(kernel, theirs["features.0.weight"].transpose(2, 3, 1, 0))
    assert variables["batch_stats"] == {}
    save_variables(tmp_path / "vgg16.safetensors", variables, config)
    loaded, loaded_config = load_variables(tmp_path / "vgg16.safetensors")
    assert_same(loaded, variables)
    assert loaded_config == config


def test_efficientnet_lite2(tmp_path: Path) -> None:
    """The names of its PyTorch ports, whose classifier has a BatchNorm with a count of its own."""
    variables, _ = small_variables(backbone="efficientnet_lite2", attention=())
    theirs = {name: array for name, array in to_authors(variables).items() if name.startswith(("_b", "_c"))}
    head = {"_conv_head.weight": np.zeros((2, 3, 1, 1)), "_bn1.weight": np.zeros(2), "_fc.bias": np.zeros(1)}
    head["_bn1.num_batches_tracked"] = np.array(5)
    np.savez(tmp_path / "theirs.npz", **theirs, **head)
    report = convert_file(tmp_path / "theirs.npz", tmp_path / "ours.safetensors")
    assert report.endswith(f"left out, not used by the backbone: {', '.join(head)}")
    loaded, config = load_variables(tmp_path / "ours.safetensors")
    assert config == BackboneConfig("efficientnet_lite2")
    assert_same(loaded, {name: {"backbone": part["backbone"]} for name, part in variables.items()})


@pytest.mark.parametrize(
    ("depthwise", "ending"), [("kernel", ""), ("depthwise_kernel", ""), ("depthwise_kernel", ":0")]
)
def test_keras_mobilenet_v2(tmp_path: Path, depthwise: str, ending: str) -> None:
    """Keras has our layouts, and two names for depthwise kernels; its weights may be stored in half precision."""
    variables, _ = small_variables(attention=())
    keras_names = {
        **{"kernel": "kernel", "depthwise_kernel": depthwise, "scale": "gamma", "bias": "beta"},
        **{"mean": "moving_mean", "var": "moving_variance"},
    }
    theirs = {}
    for collection in ("params", "batch_stats"):
        for layer, leaves in variables[collection]["backbone"].items():
            for leaf, array in leaves.items():
                theirs[f"{layer}/{keras_names[leaf]}{ending}"] = array.astype(np.float16)
    assert theirs[f"expanded_conv_depthwise/{depthwise}{ending}"].shape == (3, 3, 32, 1)
    head = {f"Conv_1/kernel{ending}": np.zeros((1, 1, 2, 3)), f"predictions/bias{ending}": np.zeros(1)}
    np.savez(tmp_path / "keras.npz", **theirs, **head)
    report = convert_file(tmp_path / "keras.npz", tmp_path / "ours.safetensors")
    assert report.endswith(f"left out, not used by the backbone: Conv_1/kernel{ending}, predictions/bias{ending}")
    loaded, config = load_variables(tmp_path / "ours.safetensors")
    assert config == BackboneConfig("mobilenet_v2")
    wanted = {
        collection: {
            "backbone": jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), part["backbone"])
        }
        for collection, part in variables.items()
    }
    assert_same(loaded, wanted)


def test_the_packages_networks_are_read_by_name(tmp_path: Path) -> None:
    assert load_file("lite")[1].backbone == "mobilenet_v2"
    assert "light PurNet on mobilenet_v2" in convert_file("lite", tmp_path / "lite.safetensors", half=True)
    with pytest.raises(InputError, match=r"^lit: no such file or folder, and not one of the package's networks"):
        load_file("lit")


def test_our_file(tmp_path: Path) -> None:
    path, copy, earlier = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "a.npz"))
    variables, config = small_variables(scaled_promotion=True)
    save_variables(path, variables | {"intermediates": {"x": np.zeros(1)}}, config)
    loaded, loaded_config = load_variables(path)
    assert_same(loaded, variables)
    assert loaded_config == config
    tensors = read_tensors(path)
    assert "params/backbone/Conv1/kernel" in tensors
    assert "batch_stats/convert1/1/mean" in tensors
    metadata = read_metadata(path)
    assert metadata["format"] == "purinet_jax 1"
    settings = (
        '"attention": ["promotion", "rectification"], "backbone": "mobilenet_v2", "channels": 2, "context": false'
    )
    assert metadata["model"] == f'{{{settings}, "light": false, "scaled_promotion": true}}'
    save_variables(copy, jax.tree.map(jnp.asarray, variables), config)
    assert copy.read_bytes() == path.read_bytes()
    np.savez(earlier, **tensors, __metadata__=np.array(json.dumps(metadata)))  # as version 0.2.0 wrote
    loaded, loaded_config = load_variables(earlier)
    assert_same(loaded, variables)
    assert loaded_config == config
    assert convert_file(path, copy, "authors", overwrite=True).splitlines()[2:] == [
        "the authors' names do not say that the promotion attention is the scaled one"
    ]


def test_half_precision_and_size_are_kept_from_file_to_file(tmp_path: Path) -> None:
    full, half, again = (tmp_path / f"{name}.safetensors" for name in ("full", "half", "again"))
    variables, config = small_variables()
    variables = jax.tree.map(lambda leaf: leaf % 1000 / 7, variables)
    save_variables(full, variables, config)
    assert stored_size(full) is None
    save_variables(full, variables, config, size=288)
    half.write_bytes(b"other")
    with pytest.raises(InputError, match=r"half\.safetensors: exists already; --overwrite replaces it"):
        convert_file(full, half, half=True)
    assert half.read_bytes() == b"other"
    convert_file(full, half, half=True, overwrite=True)
    assert {tensor.dtype for tensor in read_tensors(half).values()} == {np.dtype(np.float16)}
    loaded, loaded_config = load_variables(half)
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), variables))
    assert loaded_config == config
    convert_file(half, again)
    assert stored_size(half) == stored_size(again) == 288
    assert {tensor.dtype for tensor in read_tensors(again).values()} == {np.dtype(np.float32)}
    with pytest.raises(InputError, match=r"half\.safetensors: params/.*: reaches 70000, more than float16 holds"):
        save_variables(half, jax.tree.map(lambda leaf: leaf * 0 + 70_000, variables), config, half=True)
    assert_same(load_variables(half)[0], loaded)
    with pytest.raises(InputError, match="half: the authors' tensors are float32"):
        convert_file(full, again, "authors", half=True)


def test_missing_settings_are_the_released_ones(tmp_path: Path) -> None:
    variables, config = small_variables()
    path = tmp_path / "a.safetensors"
    save_variables(path, variables, config)
    metadata = read_metadata(path) | {"model": '{"backbone": "mobilenet_v2", "channels": 2}'}
    write_tensors(path, read_tensors(path), metadata)
    assert load_variables(path)[1] == config


SETTINGS = SMALL.to_dict()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"backbone": "resnet18"},
            r"model\.backbone: 'resnet18' is none of efficientnet_lite0, .*, vgg16",
        ),
        ({"backbone": None}, r"model\.backbone: None"),
        ({"backbone": ["resnet50"]}, r"model\.backbone"),
        (SETTINGS | {"width": 1}, r"model\.width: no such setting"),
        (SETTINGS | {"channels": 2.0}, r"model\.channels: 2\.0 is not an integer from 1 to 1024"),
        (SETTINGS | {"channels": 10**9}, r"model\.channels"),
        (SETTINGS | {"channels": 0}, r"model\.channels"),
        (
            SETTINGS | {"attention": "yes"},
            r"model\.attention: 'yes' is not a list of promotion and rectification, of one, or empty",
        ),
        ({"backbone": "vgg16", "part": "head"}, r"model\.part: 'head' is not 'backbone'"),
        ({"backbone": "vgg16", "part": "backbone", "channels": 1}, r"model\.channels: no such setting"),
        ([], "model configuration is not a table"),
        (None, "model configuration is not JSON"),
    ],
)
def test_invalid_configurations_are_refused(tmp_path: Path, settings: Any, complaint: str) -> None:
    path = tmp_path / "a.safetensors"
    text = "{" if settings is None else json.dumps(settings)
    write_tensors(path, {"params/x": np.zeros(1)}, {"format": "purinet_jax 1", "model": text})
    for use in (lambda: load_variables(path), lambda: convert_file(path, tmp_path / "b.safetensors")):
        with pytest.raises(InputError, match=complaint) as caught:
            use()
        assert str(caught.value).startswith(f"{path}: ")


def test_a_run_of_too_many_channels_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = load_config("tiny")
    config.model.channels = 2000
    with pytest.raises(InputError, match=r"^model\.channels: 2000 is not an integer from 1 to 1024$"):
        train(config, tmp_path / "data", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_earlier_versions_stored_attention_as_a_boolean(tmp_path: Path) -> None:
    for attention, said in ((ATTENTIONS, True), ((), False)):
        variables, config = small_variables(attention=attention)
        path = tmp_path / "a.safetensors"
        save_variables(path, variables, config)
        metadata = read_metadata(path)
        earlier = json.dumps(json.loads(metadata["model"]) | {"attention": said})
        write_tensors(path, read_tensors(path), metadata | {"model": earlier})
        assert load_variables(path)[1] == config


def test_mismatched_tensors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    variables, config = small_variables(attention=())
    full = to_authors(variables)
    tensors = dict(full)
    for name in ("convert1.0.bias", "convert2.0.bias", "convert3.0.bias"):
        del tensors[name]
    tensors["x"] = np.zeros(1)
    tensors["convert4.2.weight"] = np.zeros(2, np.float32)
    tensors["convert4.1.bias"] = np.zeros(2, np.int64)
    tensors["convert4.1.num_batches_tracked"] = np.zeros((), np.float32)
    np.savez("stage3.npz", **tensors)
    with pytest.raises(InputError) as caught:
        convert_file("stage3.npz", "ours.safetensors")
    message = str(caught.value)
    assert message.startswith("stage3.npz: 3 missing (convert1.0.bias, convert2.0.bias, convert3.0.bias), ")
    assert ", 1 surplus (x), 3 misshapen (" in message
    assert "convert4.2.weight: (2,) instead of (1,)" in message
    assert "convert4.1.bias: int64 instead of a floating type" in message
    assert "convert4.1.num_batches_tracked: float32 instead of an integer type" in message
    assert "\n" not in message
    assert not Path("ours.safetensors").exists()

    # Many are counted, names from a file are cut and printable.
    surplus = {f"{index}\n{'x' * 1000}": np.zeros(1) for index in range(20)}
    with pytest.raises(InputError, match=r"^20 surplus \(0\?x{98}, .* and 15 more\)$"):
        from_authors(full | surplus)
    # A count of batches belongs to a BatchNorm.
    with pytest.raises(InputError, match=r"1 surplus \(convert1\.0\.num_batches_tracked\)"):
        from_authors(full | {"convert1.0.num_batches_tracked": np.zeros((), np.int64)})
    # Half an attention is one with the rest missing.
    with pytest.raises(InputError, match=r"missing \(.*\)$"):
        from_authors(full | {"oa_convert1.2.weight": np.zeros(1, np.float32)})
    # Another backbone's file.
    with pytest.raises(InputError, match=r"surplus \(features\.1\.running_mean\)"):
        from_backbone(vgg16() | {"features.1.running_mean": np.zeros(64, np.float32)})

    with pytest.raises(InputError, match=r"ours\.safetensors: \d+ missing \(.* and [\d,]+ more\)$"):
        save_variables("ours.safetensors", variables, dataclasses.replace(config, attention=ATTENTIONS))
    with pytest.raises(InputError, match=r"ours\.safetensors: 1 surplus \(num_batches_tracked/nowhere\)"):
        save_variables("ours.safetensors", variables, config, {"nowhere.num_batches_tracked": 1})
    save_variables("ours.safetensors", variables, config)
    changed = read_tensors("ours.safetensors")
    changed["params/y"] = changed.pop("params/convert1/2/slope")
    write_tensors("changed.safetensors", changed, read_metadata("ours.safetensors"))
    with pytest.raises(
        InputError, match=r"changed\.safetensors: 1 missing \(params/convert1/2/slope\), 1 surplus \(params/y\)$"
    ):
        load_variables("changed.safetensors")


def test_files_of_other_kinds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tensors("a.safetensors", {"weight": np.zeros(2), "bias": np.zeros(2)})
    with pytest.raises(
        InputError,
        match=r"^a\.safetensors: holds no tensors of efficientnet_lite0, .*, vgg16 \(starts with bias, weight\)$",
    ):
        convert_file("a.safetensors", "b.safetensors")
    with pytest.raises(InputError, match=r"^a\.safetensors: holds no purinet_jax variables"):
        load_variables("a.safetensors")
    write_tensors("a.safetensors", {"a": np.zeros(2)}, {"format": "purinet_jax 2", "model": "{}"})
    with pytest.raises(InputError, match=r"^a\.safetensors: has the format 'purinet_jax 2', not 'purinet_jax 1'$"):
        load_variables("a.safetensors")
    for destination in ("b.pth", "b"):
        with pytest.raises(InputError, match=rf"^{destination}: tensors are written to"):
            convert_file("missing.npz", destination)
    with pytest.raises(InputError, match=r"^missing\.npz: no such file$"):
        convert_file("missing.npz", "b.safetensors")
    with pytest.raises(InputError, match="holds no backbone's tensors"):
        from_authors({"convert1.0.weight": np.zeros((2, 2, 1, 1))})
    with pytest.raises(InputError, match="a backbone alone, no PurNet"):
        from_authors({"layer0.0.weight": np.zeros((2, 2, 1, 1))})
    with pytest.raises(InputError, match=r"model\.channels: 1000000 is not an integer from 1 to 1024"):
        from_authors({"layer0.0.weight": np.zeros(1), "convert1.0.weight": np.zeros((10**6, 0, 1, 1))})
