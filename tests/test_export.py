"""Exported networks: the printed programs run them without the package, each layer is the same, and invalid requests
are refused."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.tiny import TinyBackbone, tiny_model
from PIL import Image

from purinet_jax.commands.main import main
from purinet_jax.errors import InputError
from purinet_jax.export.export_file import export_file
from purinet_jax.export.graph import OPSET, onnx_graph
from purinet_jax.export.onnx_file import export_onnx, onnx_program
from purinet_jax.export.stablehlo import stablehlo_program
from purinet_jax.network.backbones import BACKBONES
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.cpu.convolution import convolution
from purinet_jax.network.cpu.depthwise import depthwise_convolution
from purinet_jax.network.cpu.pooling import max_pool
from purinet_jax.network.cpu.upsampling import bilinear_upsampling, transposed_convolution
from purinet_jax.network.layers import prelu
from purinet_jax.prediction.predictor import Predictor, load
from purinet_jax.weights.files import save_variables

SIZE = 32
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Iterator[Predictor]:
    """A small network, known to the command line, whose maps have many grey levels."""
    rng = np.random.default_rng(1)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        if leaf.ndim == 1:
            middle = {"scale": 1.0, "var": 1.0, "slope": 0.25}.get(path[-1].key, 0.0)
            return (middle + rng.uniform(-0.1, 0.1, leaf.shape)).astype(np.float32)
        return (np.sqrt(2 / np.prod(leaf.shape[:-1])) * rng.standard_normal(leaf.shape)).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TinyBackbone)
        shapes = jax.eval_shape(tiny_model().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
        yield Predictor(tiny_model(), jax.tree_util.tree_map_with_path(draw, shapes), SIZE)


@pytest.fixture(scope="module")
def weights(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_variables(path, predictor.variables, ModelConfig.from_model(predictor.model), size=SIZE)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_the_printed_program_runs_the_file_without_this_package(
    kind: str, predictor: Predictor, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"network.{kind}"
    assert main(["export", "--to", kind, str(file), "--checkpoint", str(weights)]) == 0
    program = capsys.readouterr().out
    assert len([line for line in program.splitlines() if line]) <= 10
    Image.fromarray(PHOTO).save(tmp_path / "photo.jpg", quality=95)
    program += "import sys\nassert not [name for name in sys.modules if name.startswith('purinet_jax')]\n"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    with Image.open(tmp_path / "map.png") as found:
        expected = 255 * predictor.predict(tmp_path / "photo.jpg", refine=False)
        assert expected.std() > 5
        assert np.abs(np.asarray(found, np.float32) - expected).max() <= 1.5  # Pillow resizes 8 bits
    assert list(tmp_path.glob(".*")) == []


def test_the_printed_programs_are_those_of_the_docs_and_import_only_what_is_installed() -> None:
    predictor = load()
    page = Path(__file__).parents[1].joinpath("docs", "export.md").read_text()
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    distributions = importlib.metadata.packages_distributions()
    for program, extra in (
        (stablehlo_program("purnet.stablehlo", predictor.size), []),
        (onnx_program("purnet.onnx", predictor), project["optional-dependencies"]["onnx"]),
    ):
        assert "```python\n" + program.replace("'", '"') + "```" in page
        required = {re.split(r"\W", name)[0] for name in [*project["dependencies"], *extra]}
        for module in re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE):
            assert required & {name.lower() for name in distributions[module]}, module


def run_onnx(model: bytes, images: np.ndarray) -> np.ndarray:
    """The output for NHWC images, NHWC too."""
    output: Any = onnxruntime.InferenceSession(model).run(None, {"image": images.transpose(0, 3, 1, 2)})[0]
    return output.transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_onnx_takes_batches_of_any_length_and_describes_its_input(predictor: Predictor) -> None:
    squares = np.random.default_rng(2).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    exported = export_onnx(predictor)
    model = onnx.load_from_string(exported)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["layout"] == "NCHW"
    assert metadata["size"] == str(SIZE)
    assert metadata["model"] == json.dumps(ModelConfig.from_model(predictor.model).to_dict())
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Transpose", "BatchNormalization"})
    mean, std = (np.array(json.loads(metadata[name]), np.float32) for name in ("mean", "std"))
    normalised = (squares.astype(np.float32) / 255 - mean) / std
    expected = predictor.square_maps(list(squares), 3)
    assert expected.std() > 0.02
    for count in (3, 1):
        np.testing.assert_allclose(run_onnx(exported, normalised[:count])[..., 0], expected[:count], atol=1e-4)


def test_another_size_is_another_graph(predictor: Predictor) -> None:
    larger = Predictor(predictor.model, predictor.variables, 48)
    normalised = np.random.default_rng(3).standard_normal((1, 48, 48, 3)).astype(np.float32)
    maps: Any = jax.jit(predictor.model.apply)(larger.folded, normalised)
    found = run_onnx(export_onnx(larger), normalised)
    np.testing.assert_allclose(found, jax.nn.sigmoid(maps.saliency[0]), atol=1e-4)


def test_a_model_for_rembg_takes_its_input_and_is_left_alone_by_its_stretching(predictor: Predictor) -> None:
    square = np.random.default_rng(6).integers(120, 136, (SIZE, SIZE, 3), np.uint8)
    square[0, 0] = 255  # rembg divides by the maximum
    session = onnxruntime.InferenceSession(export_onnx(predictor, rembg=True))
    # What rembg 2.0's session u2net_custom does before and after the network.
    image = (square / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    inputs = {session.get_inputs()[0].name: image.transpose(2, 0, 1)[None].astype(np.float32)}
    outputs: Any = session.run(None, inputs)
    found = outputs[0][:, 0]
    stretched = np.squeeze((found - found.min()) / (found.max() - found.min()))
    expected = predictor.square_maps([square], 1)[0]
    assert 0.02 < expected.min() < expected.max() < 0.98
    inside = (expected > expected.min()) & (expected < expected.max())
    np.testing.assert_allclose(stretched[inside], expected[inside], atol=1e-4)


KERNELS = np.random.default_rng(4).standard_normal((8, 8, 6, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        (lambda k, x: max_pool(jax.nn.relu(x), 3, 2, 1), None),
        (lambda k, x: max_pool(jax.nn.relu(x), 2, 2, 0), None),
        (lambda k, x: convolution(x, k, 2, 1, 3), KERNELS[:7, :7]),
        (lambda k, x: convolution(x, k, 1, 2, 2), KERNELS[:3, :3]),
        (lambda k, x: depthwise_convolution(x, k, 2), KERNELS[:5, :5, :, :1]),
        (lambda k, x: depthwise_convolution(x, k, 1), KERNELS[:3, :3, :, :1]),
        (lambda k, x: transposed_convolution(x, k, 2)[:, :15, :20], KERNELS[:4, :4]),
        (lambda k, x: transposed_convolution(x, k, 4), KERNELS),
        (lambda k, x: bilinear_upsampling(x, 4), None),
        (lambda k, x: prelu(x, k) * jax.nn.softmax(x, axis=(1, 2)), KERNELS[0, 0, 0, :1]),
        (lambda k, x: x * jax.nn.softmax(x.mean((1, 2), keepdims=True), axis=-1), None),
    ],
)
def test_each_layer_becomes_the_operator_that_it_equals(layer: Callable[..., Any], kernel: np.ndarray | None) -> None:
    x = np.random.default_rng(5).standard_normal((2, 9, 12, 6)).astype(np.float32)
    kernel = KERNELS if kernel is None else kernel
    graph = onnx_graph(jax.make_jaxpr(layer)(kernel, x), {"kernel": kernel}, "result")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    np.testing.assert_allclose(run_onnx(model.SerializeToString(), x), layer(kernel, x), rtol=1e-4, atol=1e-4)


def test_an_unknown_operation_is_named() -> None:
    x = jnp.zeros((2, 4, 4, 3))
    with pytest.raises(NotImplementedError, match="cumsum"):
        onnx_graph(jax.make_jaxpr(lambda x: jnp.cumsum(x, axis=1))(x), {}, "result")


def test_invalid_exports_are_refused(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str, file: Path, *more: str, kind: str = "onnx") -> None:
        assert main(["export", "--to", kind, str(file), *more]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]

    there = tmp_path / "there.onnx"
    there.write_bytes(b"mine")
    refused("there.onnx: exists already; --overwrite replaces it", there)
    refused("is a folder", tmp_path, "--overwrite")
    refused("there is no folder", tmp_path / "nowhere" / "a.onnx")
    refused("none.pth: no such file or folder", there, "--overwrite", "--checkpoint", str(tmp_path / "none.pth"))
    refused("--size 288: rembg resizes images to 320", tmp_path / "a.onnx", "--layout", "rembg", "--size", "288")
    refused("--layout rembg: there is only", tmp_path / "a.onnx", "--layout", "rembg", kind="stablehlo")
    with pytest.raises(SystemExit) as exit_:
        main(["export", "--to", "torch", str(tmp_path / "a.pt")])
    assert exit_.value.code == 2
    assert "invalid choice: 'torch'" in capsys.readouterr().err
    kind: Any = "torch"
    with pytest.raises(InputError, match="torch: networks are exported to stablehlo or onnx"):
        export_file(tmp_path / "a.pt", kind)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(r"onnx: is not installed: pip install 'purinet_jax[onnx]'", tmp_path / "a.onnx")
    assert there.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [there]
