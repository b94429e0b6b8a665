"""The training loop: it goes on exactly where it stopped, stops on NaN, and refuses what it cannot use."""

import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.project_scripts import import_script
from helpers.training_runs import (
    STAGE_1,
    assert_same_variables,
    command_line,
    made_small,
    steps_logged,
    tiny_config,
    write_config,
)

from purinet_jax.data import open_pairs, write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.network.layers import bilinear_kernel
from purinet_jax.training import endings, initial, reports, train
from purinet_jax.weights.convert import load_file
from purinet_jax.weights.runs import load_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made_small(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data"), 12, size=(40, 60), seed=0)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, with validation."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        made_small(patch)
        state = train.train(tiny_config(), data, output, validation=data, progress=False)
    assert int(state.step) == 6
    return output


@pytest.mark.slow
def test_a_run_leaves_its_configuration_log_panels_and_checkpoints(straight: Path) -> None:
    assert json.loads((straight / "config.json").read_text())["model"]["backbone"] == "tiny"
    assert steps_logged(straight) == [1, 2, 3, 4, 5, 6]
    lines = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    maes = {line["step"]: line["validation/mae"] for line in lines if "validation/mae" in line}
    assert maes.keys() == {3, 6}
    assert all(0 < mae < 1 for mae in maes.values())
    events = b"".join(file.read_bytes() for file in (straight / "tensorboard").iterdir())
    for tag in (b"train/main", b"levels/structural/2", b"validation/mae", b"maps"):
        assert tag in events
    kept = {int(child.name) for child in (straight / "checkpoints").iterdir() if child.name.isdigit()}
    best = min(maes, key=maes.__getitem__)
    assert kept == {3, 4, 6} | {best}


@pytest.mark.slow
def test_loading_a_run_takes_its_best_checkpoint(straight: Path) -> None:
    lines = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    maes = {line["step"]: line["validation/mae"] for line in lines if "validation/mae" in line}
    best = min(maes, key=maes.__getitem__)
    variables, config = load_checkpoint(straight)
    expected, _ = load_checkpoint(straight / "checkpoints" / str(best))
    assert config["backbone"] == "tiny"
    for value, reference in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(value, reference)


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been(
    straight: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    metrics = reports.RunLog.metrics

    def signal_after_step_3(self: Any, step: int, *rest: Any) -> None:
        metrics(self, step, *rest)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(reports.RunLog, "metrics", signal_after_step_3)
    state = train.train(tiny_config(), data, output, progress=False)
    assert int(state.step) == 3 or int(state.step) == 4
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(reports.RunLog, "metrics", metrics)
    train.train(tiny_config(**{"loop.log_every": 1, "loop.workers": 1}), data, output, progress=False)
    assert steps_logged(output) == [1, 2, 3, 4, 5, 6]
    assert_same_variables(output, straight)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(data: Path, tmp_path: Path) -> None:
    config = tiny_config(steps=8, **STAGE_1)
    train.train(config, data, tmp_path / "whole", progress=False)
    command = [*command_line(data, write_config(tmp_path, config)), "--output"]
    # By this seed first while it saves, then in its steps.
    result = import_script("kill_test").kill_test(command, tmp_path / "killed", tmp_path / "whole", kills=2, seed=5)
    assert result["stages"] == ["saving", "stepping"]
    assert result["tensors"] > 30
    assert result["different"] == []
    assert steps_logged(tmp_path / "killed") == list(range(1, 9))


@pytest.mark.slow
def test_nan_stops_with_term_step_and_files_and_spares_the_checkpoints(data: Path, tmp_path: Path) -> None:
    settings = {"optimizer.name": "sgd", "optimizer.rate": 1e30, "optimizer.warmup_steps": 0}
    with pytest.raises(endings.NonFiniteLoss, match=r"^step [23]: .*main.* not finite, on synthetic_\d+, ") as raised:
        train.train(tiny_config(**settings, **{"loop.checkpoint_every": 1}), data, tmp_path / "run", progress=False)
    assert "\n" not in str(raised.value)
    variables, _ = load_checkpoint(tmp_path / "run" / "checkpoints" / "1")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables["batch_stats"]))
    step = int(str(raised.value).split()[1].rstrip(":"))
    assert not (tmp_path / "run" / "checkpoints" / str(step)).exists()


@pytest.mark.slow
def test_a_stage_starts_from_the_one_before(data: Path, tmp_path: Path) -> None:
    one = tiny_config(**{"model.attention": (), "steps": 2})
    train.train(one, data, tmp_path / "one", progress=False)
    source, _ = load_file(tmp_path / "one")
    two = tiny_config(steps=2, reset_upsampling=True)
    variables = initial.initial_variables(two, tmp_path / "one")
    np.testing.assert_array_equal(
        variables["params"]["convert1"]["0"]["kernel"], source["params"]["convert1"]["0"]["kernel"]
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["backbone"]["norm0"]["mean"], source["batch_stats"]["backbone"]["norm0"]["mean"]
    )
    reset = variables["params"]["predict1"]["7"]["transposed_kernel"]
    np.testing.assert_array_equal(reset, bilinear_kernel(4, 1))
    kept = initial.initial_variables(tiny_config(steps=2), tmp_path / "one")["params"]["predict1"]["7"]
    np.testing.assert_array_equal(kept["transposed_kernel"], source["params"]["predict1"]["7"]["transposed_kernel"])
    assert np.abs(np.asarray(kept["transposed_kernel"]) - bilinear_kernel(4, 1)).max() > 0
    # The whole network's weights do not fit stage 1's: nothing is dropped silently.
    train.train(two, data, tmp_path / "two", init=tmp_path / "one", progress=False)
    with pytest.raises(InputError, match=r"two: PurNet on tiny.*with scaled attention does not fit .*without"):
        train.train(one, data, tmp_path / "three", init=tmp_path / "two", progress=False)
    with pytest.raises(InputError, match=r"/mean is \(8,\), the configured network's is \(4,\)"):
        train.train(
            tiny_config(**{"model.channels": 4}), data, tmp_path / "three", init=tmp_path / "two", progress=False
        )
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 3}, "config.batch_size: 3 is not divisible by 4 devices"),
        ({"batch_size": 4, "accumulate": 2}, "config.batch_size: 4 is not divisible by 4 devices × 2 parts"),
        ({"dtype": "float16"}, "config.dtype: 'float16' is neither float32 nor bfloat16"),
        ({"steps": 0}, "config.steps: 0 is not at least 1"),
        ({"losses.structural": "regions"}, "losses.structural: 'regions' is none of region, ssim, none"),
        ({"optimizer.name": "adam"}, "optimizer.name: 'adam' is neither sgd nor adamw"),
        ({"model.backbone": "resnet18"}, "model.backbone: 'resnet18' is none of"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_written(
    settings: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as raised:
        train.train(tiny_config(**settings), data, tmp_path / "run", progress=False)
    assert str(raised.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_is_named(data: Path, tmp_path: Path) -> None:
    config = tiny_config()
    with config.unlocked():
        config.losses.weight = 2
    with pytest.raises(InputError, match=r"^config\.losses\.weight: no such setting$"):
        train.train(config, data, tmp_path / "run", progress=False)


def test_unreadable_pairs_are_all_named_and_left_out_only_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_synthetic(tmp_path / "data", 8, size=(40, 60), seed=0)
    images = sorted((data / "DUTS-TR-Image").iterdir())
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[5].write_text("not an image")
    with pytest.raises(InputError, match=r"^2 of 8 pairs cannot be used"):
        train.train(tiny_config(steps=2), data, tmp_path / "run", progress=False)
    assert all(any(images[i].name in line for line in caplog.messages) for i in (1, 5))
    assert not (tmp_path / "run").exists()
    state = train.train(tiny_config(steps=2), data, tmp_path / "run", skip_bad=True, progress=False)
    assert int(state.step) == 2


@pytest.mark.slow
def test_another_configuration_or_data_set_does_not_go_on_with_a_run(
    straight: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^config\.optimizer\.rate: 0\.5, but the run in .* was started with 0\.002"):
        train.train(tiny_config(**{"optimizer.rate": 0.5}), data, straight, progress=False)
    other = write_synthetic(tmp_path / "data", 5, size=(40, 60), seed=3)
    with pytest.raises(InputError, match=r"not the data set that the run in"):
        train.train(tiny_config(), other, straight, progress=False)


def test_two_processes_do_not_train_in_one_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="run: another process is training in this folder"):
            train.train(tiny_config(), data, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_folder_without_checkpoints_and_a_damaged_one_are_named(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        load_file(tmp_path)
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        load_file(tmp_path / "nowhere")
    (tmp_path / "checkpoints" / "3" / "state").mkdir(parents=True)
    with pytest.raises(InputError, match="3: not a readable checkpoint"):
        load_file(tmp_path / "checkpoints" / "3")


def test_held_out_pairs_are_validated_on_and_not_trained_on(data: Path, tmp_path: Path) -> None:
    pairs = open_pairs(data)
    rest, held = pairs.hold_out(4, seed=3)
    assert len(rest) == 8
    assert len(held) == 4
    assert sorted(rest.names + held.names) == list(pairs.names)
    assert pairs.hold_out(4, seed=3)[1].names == held.names
    assert pairs.hold_out(4, seed=4)[1].names != held.names
    with pytest.raises(InputError, match="leaves none"):
        pairs.hold_out(12, seed=0)
    config = tiny_config(**{"data.holdout": 4})
    with pytest.raises(InputError, match=r"config\.data\.holdout = 4"):
        train.train(config, data, tmp_path / "run", validation=data)
    assert not (tmp_path / "run").exists()
