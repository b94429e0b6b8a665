"""The training loop: it resumes bit for bit, stops on NaN, and refuses bad input."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
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

from purinet_jax.data import bad_pairs, open_pairs, write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.network.layers import bilinear_kernel
from purinet_jax.training import initial, reports, stopping, train
from purinet_jax.training.configurations import load_config
from purinet_jax.weights.files import load_file, stored_size
from purinet_jax.weights.runs import load_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made_small(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data"), 12, size=(40, 60), seed=0)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, with validation."""
    output = tmp_path_factory.mktemp("runs") / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        made_small(patch)
        state = train.train(tiny_config(), data, output, validation=data, progress=False)
    assert int(state.step) == 6
    return output


@pytest.mark.slow
def test_a_run_writes_its_configuration_log_panels_and_checkpoints(uninterrupted: Path) -> None:
    assert json.loads((uninterrupted / "config.json").read_text())["model"]["backbone"] == "tiny"
    assert steps_logged(uninterrupted) == [1, 2, 3, 4, 5, 6]
    lines = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    maes = {line["step"]: line["validation/mae"] for line in lines if "validation/mae" in line}
    assert maes.keys() == {3, 6}
    assert all(0 < mae < 1 for mae in maes.values())
    events = b"".join(file.read_bytes() for file in (uninterrupted / "tensorboard").iterdir())
    for tag in (b"train/main", b"levels/structural/2", b"validation/mae", b"maps"):
        assert tag in events
    kept = {int(child.name) for child in (uninterrupted / "checkpoints").iterdir() if child.name.isdigit()}
    best = min(maes, key=maes.__getitem__)
    assert kept == {3, 4, 6} | {best}


@pytest.mark.slow
def test_loading_a_run_loads_its_best_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    maes = {line["step"]: line["validation/mae"] for line in lines if "validation/mae" in line}
    best = min(maes, key=maes.__getitem__)
    variables, config = load_checkpoint(uninterrupted)
    expected, _ = load_checkpoint(uninterrupted / "checkpoints" / str(best))
    assert config.backbone == "tiny"
    for value, reference in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(value, reference)
    # The size of the images is in each checkpoint, too, so it may be copied.
    assert stored_size(shutil.copytree(uninterrupted / "checkpoints" / "4", tmp_path / "copy")) == 32


@pytest.mark.slow
def test_sigterm_saves_and_the_run_resumes_to_the_same_weights(
    uninterrupted: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert_same_variables(output, uninterrupted)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    config = tiny_config(steps=8, **STAGE_1)
    train.train(config, data, tmp_path / "uninterrupted", progress=False)
    command = [*command_line(data, write_config(tmp_path, config)), "--output"]
    # With this seed first while it saves, then between steps.
    result = import_script("kill_test").kill_test(
        command, tmp_path / "killed", tmp_path / "uninterrupted", kills=2, seed=5
    )
    assert result["stages"] == ["saving", "stepping"]
    assert result["tensors"] > 30
    assert result["different"] == []
    assert steps_logged(tmp_path / "killed") == list(range(1, 9))


@pytest.mark.slow
def test_nan_stops_the_run_with_term_step_and_files_and_is_not_saved(data: Path, tmp_path: Path) -> None:
    settings = {"optimizer.name": "sgd", "optimizer.rate": 1e30, "optimizer.warmup_steps": 0}
    with pytest.raises(stopping.NonFiniteLoss, match=r"^step [23]: .*main.* not finite, on synthetic_\d+, ") as raised:
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
    # The complete network's weights do not fit stage 1's: no tensor is dropped silently.
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
        ({"data.size": 100_000}, "config.data.size: must be from 1 to 13377, not 100000"),
        ({"data.sizes": (32, 0)}, "config.data.sizes: must be from 1 to 13377, not 0"),
        ({"data.crop": 0.0}, "config.data.crop: must be above 0 and at most 1, not 0.0"),
        ({"seed": -1, "data.holdout": 4}, "config.seed: must be from 0 to 2**32 - 1, not -1"),
        ({"losses.structural": "ssim", "data.size": 8}, "config.data.size: 8 is less than the 11 of a window of SSIM"),
        ({"batch_size": 1 << 20}, "config.batch_size: 1048576 is more than 65536"),
        ({"average_decay": 1.0}, "config.average_decay: 1.0 is not below 1"),
        ({"data.holdout": -1}, "config.data.holdout: -1 is not a number of at least 0"),
        ({"loop.timeout": -1}, "config.loop.timeout: -1 is not a number of at least 0"),
        ({"losses.structural": "regions"}, "losses.structural: 'regions' is none of region, ssim, none"),
        ({"optimizer.name": "adam"}, "optimizer.name: 'adam' is neither sgd nor adamw"),
        ({"optimizer.rate": float("nan")}, "optimizer.rate: nan is not a number of at least 0"),
        ({"model.backbone": "resnet18"}, "model.backbone: 'resnet18' is none of"),
        ({"data.holdout": 12}, "{data}: holding out 12 of 12 pairs leaves none to train on"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_written(
    settings: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as raised:
        train.train(tiny_config(**settings), data, tmp_path / "run", progress=False)
    assert str(raised.value).startswith(message.format(data=data))
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_is_named(data: Path, tmp_path: Path) -> None:
    config = tiny_config()
    with config.unlocked():
        config.losses.weight = 2
    with pytest.raises(InputError, match=r"^config\.losses\.weight: no such setting$"):
        train.train(config, data, tmp_path / "run", progress=False)


def test_configuration_files_lack_settings_but_have_no_others(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    start = "from ml_collections import ConfigDict, FrozenConfigDict\ndef get_config():\n    "
    file.write_text(
        start + "config = ConfigDict({'seed': 5, 'data': {'size': 96}})\n    return FrozenConfigDict(config)"
    )
    config = load_config(str(file), ["--config.data.flip=0.5"])
    assert (config.seed, config.data.size, config.data.flip, config.loop.timeout) == (5, 96, 0.5, 1_800)
    for settings, message in (
        ("ConfigDict({'data': {'rotation': 0}})", r"mine\.py: config\.data\.rotation: no such setting$"),
        ("ConfigDict({'average_decy': 0})", r"mine\.py: config\.average_decy: no such setting$"),
        ("ConfigDict({'data': 3})", r"mine\.py: config\.data: 3 is not a table of settings$"),
        ("{}", r"mine\.py: get_config\(\) returns no ConfigDict but dict$"),
    ):
        file.write_text(f"{start}return {settings}")
        with pytest.raises(InputError, match=message):
            load_config(str(file))


def test_unreadable_pairs_are_all_named_and_left_out_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_synthetic(tmp_path / "data", 8, size=(40, 60), seed=0)
    images = sorted((data / "DUTS-TR-Image").iterdir())
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[5].write_text("not an image")
    validation = write_synthetic(tmp_path / "validation", 3, size=(40, 60), seed=1)
    bad = min((validation / "DUTS-TR-Image").iterdir())
    bad.write_text("not an image")
    options = {"validation": validation, "progress": False}
    with pytest.raises(InputError, match=r"^3 of 11 pairs cannot be used"):
        train.train(tiny_config(steps=2), data, tmp_path / "run", **options)
    assert all(any(image.name in line for line in caplog.messages) for image in (images[1], images[5], bad))
    assert not (tmp_path / "run").exists()
    state = train.train(tiny_config(steps=2), data, tmp_path / "run", skip_bad=True, **options)
    assert int(state.step) == 2


def test_before_its_first_checkpoint_a_run_may_have_other_settings_but_no_other_programs_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(train, "Profiler", ended)
    run = tmp_path / "run"
    for size in (32, 64):
        with pytest.raises(RuntimeError):
            train.train(tiny_config(**{"data.size": size}), data, run, progress=False)
        assert json.loads((run / "config.json").read_text())["data"]["size"] == size
    for text in ('{"model_type": "bert"}', "[1]", '{"model":'):
        (run / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json: belongs to another program"):
            train.train(tiny_config(), data, run, progress=False)
        assert (run / "config.json").read_text() == text


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_configuration_or_data_set(
    uninterrupted: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^config\.optimizer\.rate: 0\.5, but the run in .* was started with 0\.002"):
        train.train(tiny_config(**{"optimizer.rate": 0.5}), data, uninterrupted, progress=False)
    other = write_synthetic(tmp_path / "data", 5, size=(40, 60), seed=3)
    with pytest.raises(InputError, match=r"not the data set that the run in"):
        train.train(tiny_config(), other, uninterrupted, progress=False)


def test_two_processes_do_not_train_in_one_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="run: another process is training in this folder"):
            train.train(tiny_config(), data, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_run_that_another_process_began_and_ended_meanwhile_is_kept(
    uninterrupted: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(train, "initial_variables", lambda *_: {})
    monkeypatch.setattr(train, "create_state", lambda *_: shutil.copytree(uninterrupted, run))
    with pytest.raises(InputError, match="run: another process has meanwhile trained in this folder"):
        train.train(tiny_config(steps=7), data, run, progress=False)
    assert (run / "config.json").read_bytes() == (uninterrupted / "config.json").read_bytes()


@pytest.mark.slow
def test_a_folder_without_checkpoints_and_a_damaged_one_are_named(uninterrupted: Path, tmp_path: Path) -> None:
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


def test_each_process_checks_its_share_of_the_pairs_and_returns_the_verdicts_of_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_synthetic(tmp_path / "data", 7, size=(40, 60), seed=0)
    for index in (2, 5):
        (data / "DUTS-TR-Image" / f"synthetic_{index:05}.jpg").write_text("not an image")
    pairs, verdicts = open_pairs(data), []

    def gather(found: np.ndarray) -> np.ndarray:
        verdicts.append(found)
        return np.stack(verdicts)

    for process, expected in ((0, [2]), (1, [2, 5])):  # the fake gather has the verdicts of those that ran before
        caplog.clear()
        assert bad_pairs([pairs], True, False, share=slice(process, None, 2), gather=gather) == [expected]
        (line,) = caplog.messages
        assert f"synthetic_{expected[-1]:05}.jpg" in line


def test_a_checkout_that_is_not_installed_finds_its_configurations() -> None:
    # Without site, the environment's own installation of the package is not found.
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]; sys.path += {sys.path[1:]!r}\n"
        "from purinet_jax.configs import base\n"
        "from purinet_jax.training.configurations import FOLDER, load_config\n"
        "assert load_config('tiny').seed == base.get_config().seed == 0\n"
        "print(FOLDER)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "configs"
