"""Fine-tuning: the settings that weights and pairs determine, its files, when it ends, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.commands import assert_refused
from helpers.tiny import tiny_model, tiny_variables
from helpers.training_runs import made_small, steps_logged, tiny_config
from PIL import Image

from purinet_jax.data import write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.network.config import ModelConfig
from purinet_jax.prediction.predictor import load
from purinet_jax.training import initial, stopping, train
from purinet_jax.training.configurations import load_config
from purinet_jax.training.finetune import finetune, held_out_pairs
from purinet_jax.weights.files import save_variables
from purinet_jax.weights.variables import BackboneConfig


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made_small(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_synthetic(tmp_path_factory.mktemp("data"), 12, size=(40, 60), seed=0)
    for file in sorted(data.glob("*/*")):  # names that systems allow, of a line break and a byte that is no UTF-8
        file.rename(file.with_stem(f"{file.stem}\n\udcff"))
    return data


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "complete.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        made_small(patch)
        save_variables(path, tiny_variables(), ModelConfig.from_model(tiny_model()), size=32)
    return path


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The errors that validation returns, one after the other."""
    errors = [0.4, 0.3, 0.35, 0.3, 0.2, 0.25, 0.25]

    def validation_error(state: Any, pairs: Any, *_: Any) -> float:
        assert len(pairs) == 2
        return errors.pop(0)

    monkeypatch.setattr(train, "validation_error", validation_error)
    return errors


@pytest.mark.slow
def test_a_run_starts_from_the_weights_ends_early_and_resumes_only_with_more_patience(
    data: Path, weights: Path, tmp_path: Path, errors: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    # The settings of other tests' runs, whose compiled programs are in the cache.
    config = tiny_config(**{"loop.validate_first": True, "loop.validate_every": 1, "loop.panel_every": 0})
    config.loop.patience = 2
    config.model.backbone = "resnet50"  # has no effect
    output = tmp_path / "run"
    caplog.set_level("INFO", "purinet_jax")
    state = finetune(config, data, output, checkpoint=weights, progress=False)
    # .3 at step 1 is the lowest; .35 and .3 are no lower.
    assert int(state.step) == 3
    assert "ended early: the validation MAE has not fallen below the 0.3000 of step 1" in caplog.text
    assert "validation MAE 0.4000 before, 0.3000 at step 1, the best;" in caplog.text
    assert {int(child.name) for child in (output / "checkpoints").iterdir() if child.name.isdigit()} == {1, 2, 3}
    written = json.loads((output / "config.json").read_text())
    assert (written["model"]["backbone"], written["model"]["channels"]) == ("tiny", 8)
    assert (written["data"]["size"], written["data"]["holdout"]) == (32, 2)
    assert len((output / "held_out.txt").read_bytes().splitlines()) == 2
    with Image.open(output / "held_out.png") as panel:
        assert panel.size == (4 * 160, 2 * 160)
    assert load(output).size == 32
    again = finetune(config, data, output, checkpoint=weights, progress=False)
    assert int(again.step) == 3
    config.loop.patience = 3
    longer = finetune(config, data, output, checkpoint=weights, progress=False)
    assert int(longer.step) == 6
    assert errors == []
    assert steps_logged(output) == [1, 2, 3, 4, 5, 6]
    assert "validation MAE 0.4000 before, 0.2000 at step 4, the best;" in caplog.text


def test_a_run_starts_from_the_weights(weights: Path) -> None:
    start = initial.initial_variables(tiny_config(), weights)
    for value, expected in zip(jax.tree.leaves(start), jax.tree.leaves(dict(tiny_variables())), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("maes", "patience", "over"),
    [
        ([], 2, False),
        ([0.3, 0.4], 2, False),
        ([0.3, 0.4, 0.3], 2, True),
        ([0.3, 0.4, 0.2], 2, False),
        ([0.3, 0.2, 0.4, 0.1], 1, False),
        ([0.3, 0.4, 0.5, 0.6], 0, False),
    ],
)
def test_patience(maes: list[float], patience: int, over: bool) -> None:
    assert stopping.out_of_patience(list(enumerate(maes)), patience) is over


def test_the_share_held_out() -> None:
    assert [held_out_pairs(count) for count in (2, 10, 240, 10_000)] == [1, 2, 36, 200]


def test_a_run_of_an_earlier_version_can_be_resumed(tmp_path: Path) -> None:
    config = load_config("finetune")
    earlier = config.to_dict()
    del earlier["loop"]["patience"], earlier["losses"]["iou"]
    earlier["model"]["attention"] = True
    config.losses.iou = False
    assert earlier["losses"]["structural"] == "none"
    earlier["losses"]["superpixels"] = "stored"  # the default of 0.2, here without effect
    train._check_resumable(config, earlier, tmp_path)
    config.model.attention = ("promotion",)
    with pytest.raises(InputError, match=r"^config\.model\.attention: \['promotion'\], but the run in"):
        train._check_resumable(config, earlier, tmp_path)


def test_a_run_on_stored_superpixels_of_an_earlier_version_needs_files(tmp_path: Path) -> None:
    config = load_config("tiny")
    earlier = config.to_dict()
    earlier["losses"]["superpixels"] = "stored"
    with pytest.raises(InputError, match=r"stored superpixels, which goes on with the authors' \.mat files \(--config"):
        train._check_resumable(config, earlier, tmp_path)
    config.losses.superpixels = "files"
    train._check_resumable(config, earlier, tmp_path)


def test_bad_input_is_named_and_nothing_is_written(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    command = ["finetune", str(data), "-o", str(output), "--checkpoint", str(weights), "--quiet"]
    assert_refused(capsys, [*command, "--config.model.channels=4"], "--config.model.channels: the network is that of")
    assert_refused(capsys, [*command, "--config.steps=4"], "--config.steps: give --steps")
    assert_refused(capsys, [*command, "--config.data.size=64"], "--config.data.size: give --size")
    assert_refused(capsys, [*command, "--config.nonsense=4"], "nonsense")
    assert_refused(capsys, [*command, "--config.loop.patience=-1"], "config.loop.patience: -1 is not a number of")
    assert_refused(capsys, [*command, "--checkpoint", str(tmp_path / "no")], "no: no such file or folder")
    assert_refused(capsys, ["finetune", str(tmp_path / "none"), *command[2:]], "none: no such file or folder")
    part = tmp_path / "part.safetensors"
    backbone = {kind: {"backbone": tree["backbone"]} for kind, tree in dict(tiny_variables()).items()}
    save_variables(part, backbone, BackboneConfig("tiny"))
    assert_refused(capsys, [*command, "--checkpoint", str(part)], "part.safetensors: holds the backbone tiny alone")
    one = write_synthetic(tmp_path / "one", 1, size=(40, 60), seed=0)
    assert_refused(capsys, ["finetune", str(one), *command[2:]], "holding out 1 of 1 pairs leaves none to train on")
    assert not output.exists()
