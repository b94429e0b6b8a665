"""The command line: one line and exit code 2 for what cannot be used, and the whole way from weights to maps."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from purinet_jax.cli import build_parser, load_config, main
from purinet_jax.convert import save_variables
from purinet_jax.data import write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.model import build_model, model_config

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model({"backbone": "mobilenet_v2", "channels": 4})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.3, x.shape).astype(np.float32), dict(shapes))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_variables(path, variables, model_config(model))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data"), 3, size=(40, 60), seed=0)


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *parts: str) -> None:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("purinet: ")
    for part in parts:
        assert part in lines[-1]


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "train" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


@pytest.mark.parametrize("command", ["train", "predict", "evaluate", "convert", "benchmark"])
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        build_parser().parse_args([command, "--help"])
    assert exit_.value.code == 0
    assert f"purinet {command}" in capsys.readouterr().out.split("examples:")[1]


def test_overrides_reach_the_configuration_and_unknown_keys_are_named() -> None:
    config = load_config(str(CONFIGS / "tiny.py"), ["--config.batch_size=16", "--config.optimizer.rate=0.5"])
    assert config.batch_size == 16
    assert config.optimizer.rate == 0.5
    with pytest.raises(InputError, match="batchsize"):
        load_config(str(CONFIGS / "tiny.py"), ["--config.batchsize=16"])
    with pytest.raises(InputError, match="many"):
        load_config(str(CONFIGS / "tiny.py"), ["--config.batch_size=many"])


def test_a_broken_configuration_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def get_config(:\n")
    with pytest.raises(InputError, match=r"broken\.py"):
        load_config(str(path), [])
    with pytest.raises(InputError, match="no such configuration file"):
        load_config(str(tmp_path / "none.py"), [])


def test_training_refuses_what_it_cannot_use(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--config", str(CONFIGS / "tiny.py"), "-o", str(tmp_path / "run"), "--quiet"]
    assert_refused(capsys, [*train, "--data", str(tmp_path / "nothing")], "nothing", "no such file or folder")
    assert_refused(capsys, [*train, "--data", str(data), "--config.nonsense=1"], "nonsense")
    (tmp_path / "empty").mkdir()
    assert_refused(capsys, [*train, "--data", str(tmp_path / "empty")], "empty")
    (tmp_path / "text.zip").write_text("not a zip")
    assert_refused(capsys, [*train, "--data", str(tmp_path / "text.zip")], "text.zip")
    assert_refused(capsys, [*train, "--data", str(data), "--init", str(tmp_path / "none.pth")], "none.pth")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as exit_:
        main([*train, "--data", str(data), "--nonsense"])
    assert exit_.value.code == 2


def test_predict_evaluate_and_convert(
    tmp_path: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((data / "DUTS-TR-Image").iterdir())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(images[0].read_bytes()[:100])
    arguments = ["--checkpoint", str(weights), "--quiet"]
    output = tmp_path / "maps"
    assert main(["predict", str(images[0]), str(broken), str(images[1]), "-o", str(output), *arguments]) == 2
    assert "broken.jpg" in capsys.readouterr().err
    for image in images[:2]:
        with Image.open(output / f"{image.stem}.png") as found, Image.open(image) as original:
            assert found.size == original.size
            assert found.mode == "L"
    assert len(list(output.iterdir())) == 2

    assert main(["evaluate", "--data", str(data), "--json", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 3
    assert 0 < result["mae"] < 1
    assert main(["evaluate", "--data", str(data), *arguments]) == 0
    assert f"MAE {result['mae']:.4f} (purnet protocol, 3 images)" in capsys.readouterr().out

    copy = tmp_path / "copy.npz"
    assert main(["convert", str(weights), str(copy)]) == 0
    assert "mobilenet_v2" in capsys.readouterr().out
    assert main(["predict", str(images[2]), "-o", str(output), "--checkpoint", str(copy), "--quiet"]) == 0


def test_other_commands_refuse_what_they_cannot_use(
    tmp_path: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "maps")
    missing = str(tmp_path / "missing")
    assert_refused(capsys, ["predict", missing, "-o", output, "--checkpoint", str(weights)], "missing")
    image = str(next((data / "DUTS-TR-Image").iterdir()))
    assert_refused(capsys, ["predict", image, "-o", output, "--checkpoint", missing], "missing")
    assert_refused(capsys, ["predict", image, "-o", image, "--checkpoint", str(weights)], Path(image).name)
    assert_refused(capsys, ["evaluate", "--data", missing, "--checkpoint", str(weights)], "missing")
    assert_refused(capsys, ["convert", missing, str(tmp_path / "a.npz")], "missing")
    assert_refused(capsys, ["convert", str(weights), str(tmp_path / "a.pth")], "a.pth")
    assert not (tmp_path / "maps").exists()
