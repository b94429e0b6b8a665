"""One run in several processes: two on this machine train as one does, and end together when one of them is killed."""

import io
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
from purinet_jax.processes import filter_notes, joined
from purinet_jax.training import train
from purinet_jax.weights.runs import load_checkpoint

STEPS = 20


def config() -> ConfigDict:
    """Stage 1's network, which compiles in seconds. SGD: Adam would make full steps of the rounding that is all the
    gradient there is of a bias in front of a BatchNorm."""
    loop = {"loop.checkpoint_every": 5, "loop.validate_every": STEPS, "loop.timeout": 60}
    return tiny_config(steps=STEPS, **{"optimizer.name": "sgd"}, **STAGE_1, **loop)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As many as no number of processes divides: the last batch of validation is not full.
    return write_synthetic(tmp_path_factory.mktemp("data"), 11, size=(40, 60), seed=0)


def start_pair(data: Path, output: Path) -> list[subprocess.Popen[str]]:
    """Two processes of two devices each, on loopback."""
    file = write_config(output.parent, config())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2")
    command = [*command_line(data, file), "--validation", str(data), "--output", str(output)]
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    return [
        subprocess.Popen(
            [*command, str(number)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags},
        )
        for number in (0, 1)
    ]


def log_of(run: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


@pytest.mark.slow
def test_two_processes_train_as_one_does_though_one_of_them_is_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "two_processes"
    pair = start_pair(data, output)
    try:
        limit = time.monotonic() + 600
        while not (output / "checkpoints" / "5" / "state").is_dir():
            assert all(process.poll() is None for process in pair), [x.communicate(timeout=60) for x in pair]
            assert time.monotonic() < limit, "no checkpoint after ten minutes"
            time.sleep(0.005)
        pair[1].kill()
        _, said = pair[0].communicate(timeout=60)
    finally:
        for process in pair:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
    # By this package's own word where the loss showed in a sum over devices, else (it waited for the other one to save)
    # by JAX's, which ends it by SIGABRT.
    assert pair[0].returncode in (1, -signal.SIGABRT), said
    assert re.fullmatch(
        r"(PurNet on tiny.*\n)?purinet: (.*: step \d+: another process was lost: .*; the last whole checkpoint is step "
        r"\d+|process 1 was lost, so this one ends; start all of them again to go on from the last checkpoint)\n",
        said,
    ), said

    pair = start_pair(data, output)
    said = [process.communicate(timeout=600)[1] for process in pair]
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
            train.train(config(), data, alone, validation=data, progress=False)
        for key in ("train/loss", "train/main", "train/gradient_norm", "validation/mae"):
            ours, theirs = log_of(output, key), log_of(alone, key)
            assert ours.keys() == theirs.keys()
            np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5, err_msg=key)
        trees: list[Any] = [load_checkpoint(run / "checkpoints" / str(STEPS))[0] for run in (output, alone)]
        for (path, value), reference in zip(
            jax.tree.leaves_with_path(trees[0]), jax.tree.leaves(trees[1]), strict=True
        ):
            np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))


NOTES = """\
warning: something that a library of C++ has to say
W1125 17:59:24.856504   10496 preemption_sync_manager.cc:147] Failed to retrieve preemption notice: UNAVAILABLE: reset
Additional GRPC error information
E1125 18:00:16.830643   10798 coordination_service.cc:1549] [115] Use error polling to propagate the following error
1
The tasks have crashed.
E1125 18:00:16.9   10798 other_file.cc:1] of something else
F1125 18:00:16.831115   10809 client.h:80] Terminating process because the JAX distributed service detected errors.
*** Check failure stack trace: ***
    @     0x7f1761940634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""


@pytest.mark.parametrize(
    ("reason", "who"),
    [
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThey.", "process 1, 3"),
        ("RPC: /xla.coordination.CoordinationService/PollForError", "process 0, the coordinator,"),
        ("", "another process"),
    ],
)
def test_of_jaxs_page_on_a_lost_process_one_line_is_left(reason: str, who: str) -> None:
    sink = io.BytesIO()
    filter_notes(io.BytesIO(NOTES.replace("1\nThe", f"{reason}\nThe").encode()), sink)
    lines = sink.getvalue().decode().splitlines()
    assert lines[0].startswith("warning: ")
    assert lines[1].endswith("of something else")
    assert lines[2].startswith(f"purinet: {who} was lost")
    assert len(lines) == 3


def test_what_a_process_said_itself_is_not_said_twice() -> None:
    sink = io.BytesIO()
    filter_notes(io.BytesIO(b"\0said\n" + NOTES.encode()), sink)
    assert sink.getvalue() == b""


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("nowhere", 2, 0), "--coordinator nowhere: not HOST:PORT"),
        (("127.0.0.1:1", 2, 2), "--process 2: must be from 0 to 1"),
    ],
)
def test_a_wrong_place_is_named(place: tuple[str, int, int], message: str) -> None:
    with pytest.raises(InputError) as raised, joined(*place, heartbeat=10):
        pass
    assert str(raised.value) == message
