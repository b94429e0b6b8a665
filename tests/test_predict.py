"""Prediction: the authors' maps to the grey level, every type of image, loading, streams, bad input."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from helpers.networks import Brightness
from helpers.project_scripts import import_script
from helpers.released import RELEASED
from jax import export
from PIL import Image

import purinet_jax
from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import read_srgb
from purinet_jax.errors import InputError
from purinet_jax.export.onnx_file import export_onnx
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.cpu import platform as platforms
from purinet_jax.network.folding import find_folds
from purinet_jax.network.inference import all_maps, saliency_maps
from purinet_jax.network.layers import bilinear_kernel
from purinet_jax.prediction import predictor as predictor_module
from purinet_jax.prediction.cutouts import visible
from purinet_jax.prediction.files import plan, predict_files
from purinet_jax.prediction.predictor import Predictor, load, predict_stream
from purinet_jax.prediction.refine import refine_map, released_map
from purinet_jax.prediction.rendering import Style
from purinet_jax.prediction.stream import SquareImage, inference_stream
from purinet_jax.weights.convert import from_authors, to_authors
from purinet_jax.weights.files import save_variables
from purinet_jax.weights.shipped import NETWORKS, Traced, load_traced, shipped_file
from purinet_jax.weights.variables import BackboneConfig

GOLDEN = Path(os.environ.get("PURNET_GOLDEN") or Path(__file__).with_name("fixtures") / "golden")
SALT = os.environ.get("PURNET_GOLDEN_SALT", "")
SIZE = 64
RGB = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def authors_tensors() -> dict[str, np.ndarray]:
    spec = importlib.util.spec_from_file_location("reference_weights", GOLDEN / "reference_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.state_dict(SALT)


@pytest.fixture(scope="module")
def small() -> Predictor:
    """A small network with weights that give maps of many grey levels."""
    model = ModelConfig("mobilenet_v2", 8).build()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    generator = np.random.default_rng(1)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        if name == "transposed_kernel":
            return bilinear_kernel(leaf.shape[0], leaf.shape[2])
        fan_in = np.prod(leaf.shape[:3]) if name == "kernel" else 9
        return (np.sqrt(2 / fan_in) * generator.standard_normal(leaf.shape)).astype(np.float32)

    return Predictor(model, jax.tree_util.tree_map_with_path(draw, shapes), SIZE)


def write(path: Path, image: np.ndarray = RGB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


@pytest.mark.slow
def test_files_are_those_of_the_authors(tmp_path: Path) -> None:
    variables, config = from_authors(authors_tensors())
    predictor = Predictor(config.build(), variables)
    images = sorted((GOLDEN / "images").glob("*.jpg"))
    assert len(images) == 3
    # A batch of two, so that the last one is padded.
    results = predict_files(predictor, plan(images, tmp_path), Style(refine=False), batch_size=2)
    assert [result.error for result in results] == [None] * 3
    session = onnxruntime.InferenceSession(export_onnx(predictor))
    backbone = predictor.model.backbone
    for image in images:
        expected = read(image.with_suffix(".png")).astype(int)
        assert expected.std() > 10
        # The exported network's too: NCHW, normalised.
        square = resize_image(read_srgb(image)[0], 320, 320).astype(np.float32) / 255
        normalised = (square - np.float32(backbone.pixel_mean)) / np.float32(backbone.pixel_std)
        exported_map: Any = session.run(None, {"image": normalised.transpose(2, 0, 1)[None]})[0]
        exported = released_map(exported_map[0, 0], expected.shape).astype(int)
        for found in (read(tmp_path / f"{image.stem}.png").astype(int), exported):
            assert found.shape == expected.shape
            assert np.mean(np.abs(found - expected) > 1) <= 0.001


@pytest.mark.parametrize(
    ("function", "operations", "for_cpus"), [(saliency_maps, (24.5, 25.5), 20), (all_maps, (39.5, 41.5), 30)]
)
def test_only_requested_maps_are_computed(
    function: Callable[..., Any], operations: tuple[float, float], for_cpus: float
) -> None:
    """The released network at 320²: 25 billion multiplications and additions for the finest map, 40 for all, and fewer
    in the CPU form."""
    model = RELEASED.build()
    images = jax.ShapeDtypeStruct((1, 320, 320, 3), np.uint8)

    def counted() -> float:
        program = function.lower(model, released_shapes(), images)  # type: ignore[attr-defined]
        return float(program.cost_analysis()["flops"]) / 2e9

    with platforms.for_all_platforms():
        assert operations[0] < counted() < operations[1]
    assert counted() < for_cpus


@functools.cache
def released_shapes() -> Any:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    return jax.eval_shape(RELEASED.build().init, jax.random.key(0), images)


def test_every_type_of_image(small: Predictor, tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    saliency = small.predict(path)
    assert saliency.dtype == np.float32
    assert saliency.shape == (40, 50)
    assert saliency.min() >= 0
    assert saliency.max() <= 1
    assert saliency.std() > 0.01
    pillow = Image.fromarray(RGB)
    for image in (str(path), path.read_bytes(), RGB, jnp.asarray(RGB), pillow, pillow.convert("RGBA")):
        np.testing.assert_array_equal(small.predict(image), saliency)
    grey = np.repeat(RGB[..., :1], 3, axis=2)
    for image in (grey[..., 0], jnp.asarray(grey[..., 0]), Image.fromarray(grey[..., 0])):
        np.testing.assert_array_equal(small.predict(image), small.predict(grey))


def test_alpha_hides_colours_and_multiplies_maps(small: Predictor, tmp_path: Path) -> None:
    image = cv2.resize(RGB, (100, 80), interpolation=cv2.INTER_CUBIC)  # larger than the square, so it is refined
    alpha = np.random.default_rng(1).integers(0, 256, (80, 100), dtype=np.uint8)
    alpha[:, 50:] = 0
    rgba = np.dstack([image, alpha])
    expected = small.predict(visible(image, alpha)) * (alpha / 255)
    for given in (rgba, jnp.asarray(rgba), Image.fromarray(rgba), write(tmp_path / "a.png", rgba)):
        np.testing.assert_allclose(small.predict(given), expected, atol=1e-6)
    rgba[:, 50:, :3] = 255 - rgba[:, 50:, :3]
    np.testing.assert_allclose(small.predict(rgba), expected, atol=1e-6)
    grey = Image.fromarray(image[..., 0]).convert("LA")
    grey.putalpha(Image.fromarray(alpha))
    expected = small.predict(visible(np.repeat(image[..., :1], 3, axis=2), alpha)) * (alpha / 255)
    np.testing.assert_allclose(small.predict(grey), expected, atol=1e-6)
    opaque = np.dstack([image, np.full_like(alpha, 255)])
    np.testing.assert_array_equal(small.predict(opaque), small.predict(image))


@pytest.mark.slow
def test_the_map_is_the_networks_output_resized(small: Predictor) -> None:
    square = np.asarray(Image.fromarray(RGB).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    images = (square[None] / 255 - 0.5) / 0.5  # MobileNetV2's normalisation
    maps: Any = jax.jit(small.model.apply)(small.variables, images.astype(np.float32))
    expected = cv2.resize(np.asarray(jax.nn.sigmoid(maps.saliency[0]))[0, ..., 0], (50, 40))
    np.testing.assert_allclose(small.predict(RGB), expected, atol=1e-5)


def test_maps_of_larger_images_are_refined(small: Predictor) -> None:
    image = cv2.resize(RGB, (100, 80), interpolation=cv2.INTER_CUBIC)
    square = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    (saliency,) = small.square_maps([square], 1)
    np.testing.assert_allclose(small.predict(image), refine_map(saliency, square, image), atol=1e-6)
    np.testing.assert_allclose(small.predict(image, refine=False), cv2.resize(saliency, (100, 80)), atol=1e-6)
    assert np.abs(small.predict(image) - small.predict(image, refine=False)).max() > 0.01


@pytest.mark.parametrize("name", [None, *NETWORKS])
def test_the_packages_networks_load_by_name_and_the_first_by_default(name: str | None) -> None:
    predictor, same = load(name), load(shipped_file(name or NETWORKS[0]))
    assert predictor.size == same.size == {"context": 320, "lite": 288}[name or "context"]  # the file says so
    assert predictor.model == same.model  # built at its first use
    jax.tree.map(np.testing.assert_array_equal, predictor.variables, same.variables)
    assert load(name, size=96).size == 96
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(same.variables))
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(same.folded))
    assert same.folded["batch_stats"] == {}
    assert same.folded is same.folded
    jax.tree.map(np.testing.assert_array_equal, predictor.folded, same.folded)  # by the folds stored with the program


def test_a_name_that_is_neither_file_nor_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"^heavy: no such file or folder, and not one of the package's networks: .*lite"
    ):
        load("heavy")
    Path("lite").mkdir()  # files and folders come first
    with pytest.raises(InputError, match="lite: no checkpoint in this folder"):
        load("lite")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_traced_programs_are_those_of_the_weights(name: str) -> None:
    """`python scripts/trace_shipped.py` writes it again."""

    def text(traced: Traced) -> str:
        program = export.deserialize(bytearray(traced.program)).mlir_module()
        return re.sub(r"#loc.*\n|\s*loc\([^)]*\)", "", program)  # lines of source files

    stored, traced = load_traced(name), import_script("trace_shipped").trace_shipped(name)
    assert (stored.folds, stored.size) == (traced.folds, traced.size)
    assert text(stored) == text(traced)
    assert b"/purinet_jax/" not in stored.program


def test_a_program_that_jax_cannot_read_is_ignored(small: Predictor) -> None:
    traced = Traced(b"of another version", find_folds(small.model, small.variables), SIZE)
    predictor = Predictor(small.model, small.variables, SIZE, traced)
    np.testing.assert_array_equal(predictor.predict(RGB), small.predict(RGB))


@pytest.mark.slow
def test_unknown_compiler_options_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    square = np.random.default_rng(0).integers(0, 256, (288, 288, 3), np.uint8)
    known = load("lite").square_maps([square], 1)
    monkeypatch.setattr(platforms, "_COMPILER_OPTIONS", {"of_another_version": True})
    np.testing.assert_allclose(load("lite").square_maps([square], 1), known, atol=1e-5)


@pytest.mark.slow
def test_lists_of_any_length_and_sizes(small: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert small.predict([]) == []
    images = [RGB, RGB[:20], RGB[:, :30]]
    alone = [small.predict(image) for image in images]
    for image, saliency in zip(small.predict(images), alone, strict=True):
        np.testing.assert_array_equal(image, saliency)
    monkeypatch.setattr(predictor_module, "_list_batch_size", lambda: 2)
    maps = small.predict(images)
    assert [saliency.shape for saliency in maps] == [(40, 50), (20, 50), (40, 30)]
    for image, saliency in zip(maps, alone, strict=True):
        np.testing.assert_allclose(image, saliency, atol=1e-5)


def test_another_size_is_another_map(small: Predictor) -> None:
    assert small.predict(RGB, size=96).shape == (40, 50)
    assert np.abs(small.predict(RGB, size=96) - small.predict(RGB)).max() > 0.01


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            RGB.astype(np.float32),
            r"uint8 \[height, width, 4\], \[height, width, 3\] or \[height, width\], not float32 \[40, 50, 3\]",
        ),
        (RGB[None], r"not uint8 \[1, 40, 50, 3\]"),
        (RGB[..., :2], r"not uint8 \[40, 50, 2\]"),
        (RGB[:0], r"not uint8 \[0, 50, 3\]"),
        (3, "a path, bytes, a Pillow image or an array, not int"),
        (Image.new("F", (4, 4)), "image: its pixels are floating-point"),
        ("nowhere.png", "nowhere.png: cannot be read"),
    ],
)
def test_other_types_are_refused(small: Predictor, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small.predict(image)


def test_sizes_are_positive(small: Predictor) -> None:
    with pytest.raises(InputError, match="size: must be at most 13,377, not 100,000"):
        small.predict(RGB, size=100_000)
    with pytest.raises(InputError, match="size: must be at least 1, not 0"):
        small.predict(RGB, size=0)
    with pytest.raises(InputError, match="batch_size: must be at least 1, not 0"):
        next(predict_stream(small, 1, lambda _: RGB, batch_size=0))


def test_loads_files_of_this_package_and_the_authors(small: Predictor, tmp_path: Path) -> None:
    ours, authors = tmp_path / "ours.safetensors", tmp_path / "authors.npz"
    save_variables(ours, small.variables, ModelConfig.from_model(small.model))
    np.savez(authors, **to_authors(small.variables))
    for path in (ours, str(authors)):
        predictor = load(path)
        assert predictor.size == 320
        np.testing.assert_array_equal(predictor.predict(RGB, SIZE), small.predict(RGB))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(predictor.folded))


@pytest.mark.slow
def test_loads_a_training_run(small: Predictor, tmp_path: Path) -> None:
    import optax

    from purinet_jax.training.checkpoints import RunRecord, open_checkpoints, save_checkpoint
    from purinet_jax.training.losses import Objective
    from purinet_jax.training.step import create_state

    state = create_state(small.model, small.variables, optax.sgd(0.1), Objective("none"))
    with open_checkpoints(tmp_path, keep=1) as checkpointer:
        config = {"model": ModelConfig.from_model(small.model).to_dict(), "data": {"size": 96}}
        record = RunRecord(config, data="", bad=[])
        save_checkpoint(checkpointer, state, record, mae=0.5)
    predictor = load(tmp_path)
    assert predictor.model == small.model
    assert predictor.size == 96
    jax.tree.map(np.testing.assert_array_equal, predictor.variables, small.variables)


def test_a_backbone_alone_is_refused(small: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    below = {name: {"backbone": small.variables[name]["backbone"]} for name in ("params", "batch_stats")}
    save_variables(path, below, BackboneConfig("mobilenet_v2"))
    with pytest.raises(InputError, match=r"backbone\.safetensors: holds the backbone mobilenet_v2 alone"):
        load(path)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.npz", tmp_path / "missing", write(tmp_path / "a.png"), tmp_path):
        with pytest.raises(InputError, match=re.escape(str(path))):
            load(path)


def test_a_stream_keeps_few_images_and_stops_with_its_reader() -> None:
    lock = threading.Lock()
    in_progress = most = 0

    def read(index: int) -> SquareImage:
        nonlocal in_progress, most
        with lock:
            in_progress += 1
            most = max(most, in_progress)
        return SquareImage(RGB, RGB.shape, index)

    def finish(index: int, saliency: np.ndarray, image: SquareImage) -> int:
        nonlocal in_progress
        assert saliency.shape == RGB.shape[:2]
        assert index == image.extra
        with lock:
            in_progress -= 1
        return index

    predict = Brightness().square_maps
    assert list(inference_stream(predict, 500, read, finish, batch_size=4)) == list(range(500))
    assert most <= 40
    stream = inference_stream(predict, 500, read, finish, batch_size=4)
    assert next(stream) == 0
    stream.close()
    assert not any(thread.name.startswith("purinet") for thread in threading.enumerate())


def test_names_are_imported_at_their_first_use() -> None:
    program = (
        "import sys, purinet_jax\n"
        "heavy = {'jax', 'flax', 'numpy', 'cv2', 'PIL', 'grain', 'skimage', 'tensorflow_datasets', 'orbax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "predictor = purinet_jax.load()\n"
        "late = {'flax', 'grain', 'skimage', 'tensorflow_datasets', 'orbax', 'optax', 'scipy', 'clu', 'av', 'tqdm'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
        "import numpy\n"
        "saliency = predictor.predict(numpy.zeros((288, 288, 3), 'uint8'))\n"
        "assert saliency.shape == (288, 288)\n"
        "late.remove('scipy')  # JAX itself takes it for linear algebra\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
    )
    root = Path(purinet_jax.__file__).parent.parent
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def test_public_names() -> None:
    assert set(purinet_jax.__all__) <= set(dir(purinet_jax))
    for name in set(purinet_jax.__all__) - {"__version__"}:
        assert callable(getattr(purinet_jax, name))
    assert purinet_jax.load is load
    with pytest.raises(AttributeError, match="nothing"):
        purinet_jax.nothing  # noqa: B018
    try:
        assert re.match(r"\d+\.\d+", purinet_jax.__version__)
    except PackageNotFoundError:
        pytest.skip("purinet_jax is not installed")
