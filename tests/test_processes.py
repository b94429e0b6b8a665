"""One run in several processes: two on this machine train as one does, and both end when one of them is killed."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.training_runs import STAGE_1, command_line, made_small, tiny_config, write_config
from ml_collections import ConfigDict

from purinet_jax.data import write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.processes import joined
from purinet_jax.training import train
from purinet_jax.weights.runs import load_checkpoint

STEPS = 20


def config() -> ConfigDict:
    """Stage 1's network, which compiles in seconds, with SGD: Adam would take full steps along the rounding errors
    that are the gradient of a bias before a BatchNorm."""
    loop = {"loop.checkpoint_every": 5, "loop.validate_every": STEPS, "loop.timeout": 60}
    return tiny_config(steps=STEPS, **{"optimizer.name": "sgd"}, **STAGE_1, **loop)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 11 usable pairs, so that the last batch of validation is not full, and a bad one in process 1's share.
    root = tmp_path_factory.mktemp("data")
    (write_synthetic(root, 12, size=(40, 60), seed=0) / "DUTS-TR-Image" / "synthetic_00011.jpg").write_text("no image")
    return root


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("held_out"), 11, size=(40, 60), seed=0)


def start_pair(data: Path, held_out: Path, output: Path) -> list[subprocess.Popen[str]]:
    """Two processes of two devices each, on loopback."""
    file = write_config(output.parent, config())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2")
    command = [*command_line(data, file), "--skip-bad", "--validation", str(held_out), "--output", str(output)]
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    return [
        subprocess.Popen(
            [*command, str(process)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags},
        )
        for process in (0, 1)
    ]


def log_of(run: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


@pytest.mark.slow
def test_two_processes_train_as_one_does_even_if_one_of_them_is_killed(
    data: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "two_processes"
    pair = start_pair(data, held_out, output)
    try:
        limit = time.monotonic() + 600
        while not (output / "checkpoints" / "5" / "state").is_dir():
            assert all(process.poll() is None for process in pair), [x.communicate(timeout=60) for x in pair]
            assert time.monotonic() < limit, "no checkpoint after ten minutes"
            time.sleep(0.005)
        pair[1].kill()
        said = [process.communicate(timeout=60)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
    # Each process has checked its own share of the pairs.
    assert "synthetic_00011" in said[1]
    assert "synthetic_00011" not in said[0]
    # A sum over devices fails, or JAX notices the loss (while the process waits for the other one to save) and aborts.
    assert pair[0].returncode in (1, -signal.SIGABRT), said
    line = said[0].splitlines()[-1]
    assert pair[0].returncode < 0 or re.fullmatch(
        r"purinet: .*: step \d+: .*: another process was lost: .*; the last complete checkpoint is step \d+", line
    ), said

    pair = start_pair(data, held_out, output)
    try:
        said = [process.communicate(timeout=600)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], said
    assert "going on from step " in said[0]
    assert f"saved step {STEPS}" in said[0]
    assert said[1] == ""

    made_small(monkeypatch)
    devices = jax.devices()
    for count in (4, 1):
        alone = tmp_path / f"{count}_devices"
        with monkeypatch.context() as patch:
            patch.setattr(jax, "devices", lambda *_, count=count: devices[:count])
            train.train(config(), data, alone, validation=held_out, skip_bad=True, progress=False)
        for key in ("train/loss", "train/main", "train/gradient_norm", "validation/mae"):
            ours, theirs = log_of(output, key), log_of(alone, key)
            assert ours.keys() == theirs.keys()
            np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5, err_msg=key)
        trees: list[Any] = [load_checkpoint(run / "checkpoints" / str(STEPS))[0] for run in (output, alone)]
        for (path, value), reference in zip(
            jax.tree.leaves_with_path(trees[0]), jax.tree.leaves(trees[1]), strict=True
        ):
            np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (("nowhere", 2, 0), "--coordinator nowhere: not HOST:PORT"),
        (("127.0.0.1:1", 2, 2), "--process 2: must be from 0 to 1"),
    ],
)
def test_a_wrong_address_is_named(address: tuple[str, int, int], message: str) -> None:
    with pytest.raises(InputError) as raised, joined(*address, heartbeat=10):
        pass
    assert str(raised.value) == message
