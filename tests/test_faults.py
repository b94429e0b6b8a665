"""Failures around a run: it ends with one line that names them, and the last complete checkpoint stays readable."""

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.training_runs import STAGE_1, assert_same_variables, made_small, tiny_config
from ml_collections import ConfigDict

from purinet_jax.commands.main import main
from purinet_jax.data import write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.network.config import ModelConfig
from purinet_jax.training import initial, reports, stopping, train, watchdog
from purinet_jax.training.configurations import load_config
from purinet_jax.training.watchdog import Watchdog
from purinet_jax.weights.files import save_variables
from purinet_jax.weights.runs import load_checkpoint
from purinet_jax.workers import worker_processes


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made_small(monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_synthetic(tmp_path / "data", 8, size=(40, 60), seed=0)


def config(**settings: Any) -> ConfigDict:
    return tiny_config(**STAGE_1, **{"steps": 12, "loop.workers": 0, **settings})


def after_step(monkeypatch: pytest.MonkeyPatch, wanted: int, happens: Callable[[], object]) -> None:
    """Calls a function once a step has been computed."""
    metrics = reports.RunLog.metrics

    def and_then(self: Any, step: int, *rest: Any) -> None:
        metrics(self, step, *rest)
        if step == wanted:
            happens()

    monkeypatch.setattr(reports.RunLog, "metrics", and_then)


def assert_whole(run: Path, step: int) -> None:
    variables, _ = load_checkpoint(run / "checkpoints" / str(step))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: a full disk (mounting a small tmpfs is not permitted here)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, after: Path) -> None:
    """Fills a disk once a folder, which is written in the background, exists."""
    limit = time.monotonic() + 60
    while not after.is_dir() and time.monotonic() < limit:
        time.sleep(0.01)
    with (folder / "filler").open("wb", 0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.mark.slow
def test_a_full_disk_ends_the_run_which_resumes_once_there_is_space(
    small_disk: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_disk / "run"
    with monkeypatch.context() as patch:
        after_step(patch, 3, lambda: fill(small_disk, run / "checkpoints" / "2" / "state"))
        with pytest.raises(stopping.RunEnded) as raised:
            train.train(config(), data, run, progress=False)
    message = str(raised.value)
    assert message.startswith(f"{run}: step ")
    assert message.endswith(": no space is left on the disk; the last complete checkpoint is step 2")
    assert_whole(run, 2)
    (small_disk / "filler").unlink()
    train.train(config(), data, run, progress=False)
    train.train(config(), data, tmp_path / "uninterrupted", progress=False)
    assert_same_variables(run, tmp_path / "uninterrupted")

    # A damaged checkpoint is named, with the remedy, and the remedy works.
    last = run / "checkpoints" / "12" / "state"
    for file in last.rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError) as refused:
        train.train(config(), data, run, progress=False)
    expected = f"{last.parent}: not a readable checkpoint (if damaged, remove the folder to go on from step 10; if of "
    assert str(refused.value).startswith(expected)
    shutil.rmtree(last.parent)
    train.train(config(), data, run, progress=False)
    assert_same_variables(run, tmp_path / "uninterrupted")


@pytest.mark.slow
def test_data_that_disappear_during_a_run_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after_step(monkeypatch, 3, lambda: shutil.rmtree(data))
    monkeypatch.setattr("purinet_jax.training.configurations.load_config", lambda *_: config())
    arguments = ["train", "--config", "tiny", "--data", str(data), "-o", str(tmp_path / "run"), "--quiet"]
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("purinet: ")]
    assert str(data) in line
    assert "synthetic_" in line
    assert_whole(tmp_path / "run", 2)


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="/sys, in which no folders can be made, is Linux's")
def test_an_output_folder_that_cannot_be_written_to_is_named(data: Path) -> None:
    with pytest.raises(InputError, match=r"^/sys/kernel/run: cannot be written to: (Operation|Permission|Read-only)"):
        train.train(config(), data, "/sys/kernel/run", progress=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "log.jsonl"), "no space is left on the disk"),
        (ValueError("RESOURCE: write failed: No space left on device"), "no space is left on the disk"),
        (OSError(errno.EROFS, "Read-only file system", "log.jsonl"), "Read-only file system: log.jsonl"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nmore"),
            "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes. (config.loop.remat, "
            "config.accumulate, a smaller batch)",
        ),
    ],
)
def test_errors_of_the_system_and_the_devices_become_one_line(error: Exception, said: str) -> None:
    def run() -> None:
        watchdog = Watchdog(0)
        with stopping.failures_in_words(Path("run"), watchdog):
            watchdog.enter("step 3: saving")
            raise error

    with pytest.raises(stopping.RunEnded) as raised:
        run()
    assert str(raised.value) == f"run: step 3: saving: {said}; there is no checkpoint yet"


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_both_commands_end_with_one_line_and_exit_code_1_when_a_run_fails(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise stopping.RunEnded("run: step 3: saving: no space is left on the disk; there is no checkpoint yet")

    monkeypatch.setattr(f"purinet_jax.training.{command}.{command}", fail)
    arguments = {"train": ["train", "--config", "tiny", "--data"], "finetune": ["finetune"]}[command]
    assert main([*arguments, str(tmp_path), "-o", str(tmp_path / "run"), "--quiet"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["purinet: run: step 3: saving: no space is left on the disk; there is no checkpoint yet"]


def test_a_stage_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said, ended = [], threading.Event()

    def end(message: str, code: int) -> None:
        said.append((message, code))
        ended.set()

    monkeypatch.setattr(watchdog, "end", end)
    with Watchdog(0.2) as watching:
        for _ in range(3):
            watching.enter("step 1: computing on 4 devices")
            assert not ended.wait(0.1)
        watching.enter("step 2: computing on 4 devices", compiles=True)
        assert not ended.wait(0.3)
        watching.enter("step 3: reading the batch")
        assert ended.wait(10)
    message, code = said[0]
    assert message.startswith("step 3: reading the batch has not ended after 0.2 s (config.loop.timeout)")
    assert code == 1


def test_time_in_which_a_run_is_suspended_does_not_count() -> None:
    program = (
        "import time; from purinet_jax.training.watchdog import Watchdog\n"
        "with Watchdog(0.8) as watchdog:\n"
        "    watchdog.enter('step 1: saving'); print('saving', flush=True); time.sleep(0.4)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"saving\n"
        run.send_signal(signal.SIGSTOP)
        time.sleep(1.2)
        run.send_signal(signal.SIGCONT)
        assert (run.wait(10), run.stderr.read()) == (0, b"")


def _killed(_: None, item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_worker_process_that_is_killed_is_named() -> None:
    message = r"^a worker process was killed, perhaps because memory ran out$"
    with pytest.raises(InputError, match=message), worker_processes(1, _killed, None) as work:
        list(work(range(3)))


@pytest.mark.slow
def test_a_traced_run_equals_another_one_bit_for_bit(data: Path, tmp_path: Path) -> None:
    for name, profile in (("one", 1), ("two", 0)):
        train.train(config(steps=20, dtype="bfloat16"), data, tmp_path / name, profile=profile, progress=False)
    assert_same_variables(tmp_path / "one", tmp_path / "two")
    names = {file.name.partition(".")[2] for file in (tmp_path / "one" / "profile").rglob("*") if file.is_file()}
    assert "xplane.pb" in names  # TensorBoard's
    assert "json.gz" in names  # Perfetto's
    assert not (tmp_path / "two" / "profile").exists()
    lines = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert all(line["train/model_flop_utilisation"] > 0 for line in lines)


def test_weights_that_fit_only_in_part_are_loaded_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = initial.initial_variables(config(), None)
    file = tmp_path / "weights.safetensors"
    save_variables(file, source, ModelConfig.from_dict(config().model))
    wider = config(**{"model.channels": 10})
    with pytest.raises(InputError, match=r"is \(.*8.*\), the configured network's is \(.*10.*\)$"):
        initial.initial_variables(wider, file)
    caplog.set_level(logging.WARNING, "purinet_jax")
    variables = initial.initial_variables(wider, file, partial=True)
    for tree in ("params", "batch_stats"):
        for value, reference in zip(
            jax.tree.leaves(variables[tree]["backbone"]), jax.tree.leaves(source[tree]["backbone"]), strict=True
        ):
            np.testing.assert_array_equal(value, reference)
    (line,) = [line for line in caplog.messages if "--partial" in line]
    assert line.startswith(f"{file}: --partial, of another shape, drawn from the seed: ")
    assert " tensors: batch_stats/convert1/" in line


def test_configurations_have_the_settings_that_a_resumed_run_may_change() -> None:
    loop = load_config("purnet_lite").loop
    assert loop.timeout == 1800
    assert loop.remat is False
