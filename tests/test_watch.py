"""Watching folders: files that are added are done once, when they are complete, and tried again when they change."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import INTERRUPTIBLE, assert_refused
from helpers.networks import Brightness
from PIL import Image

from purinet_jax.errors import InputError
from purinet_jax.prediction import watch as watching
from purinet_jax.prediction.files import Result
from purinet_jax.prediction.rendering import Style
from purinet_jax.prediction.watch import watch


def photo(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


class Looks:
    """Runs `watch` until it has looked at its folders `count` times, and calls `between` before each further look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.between: dict[int, Any] = {}
        self.index = 0
        monkeypatch.setattr(watching.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.index += 1
        if self.index == self.count:
            raise TimeoutError
        self.between.get(self.index, lambda: None)()

    def run(self, folder: Path, count: int, output: Path | None = None, **options: Any) -> list[tuple[str, str | None]]:
        network: Any = Brightness()
        self.index, self.count = 0, count
        results: list[Result] = []
        target = None if output is None else str(output)
        watched: Iterator[Result] = watch(network, [str(folder)], target, Style(), **options)
        with pytest.raises(TimeoutError):
            results.extend(watched)
        return [(result.job.source.name, result.error) for result in results]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def test_files_are_done_once_and_added_ones_too(looks: Looks, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    photo(folder / "a.png")
    looks.between = {
        2: lambda: photo(folder / "below" / "b.jpg"),
        3: lambda: shutil.move(photo(tmp_path / "c.png"), folder / "c.png"),
        4: lambda: (folder / ".hidden.png").touch(),
        5: lambda: (folder / "notes.txt").touch(),
        6: lambda: os.utime(folder / "a.png"),
    }
    assert looks.run(folder, 9, output) == [("a.png", None), ("b.jpg", None), ("c.png", None)]
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*.png")) == ["a.png", "below/b.png", "c.png"]
    # Outputs that exist are kept, unless asked.
    assert looks.run(folder, 3, output) == []
    names = ["a.png", "b.jpg", "c.png"]
    assert sorted(name for name, _ in looks.run(folder, 3, output, existing="overwrite")) == names


def test_files_that_are_being_written_wait(looks: Looks, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    data = photo(tmp_path / "whole.png", (90, 90)).read_bytes()
    folder.mkdir()
    file = folder / "slow.png"

    def grow() -> None:
        file.write_bytes(data[: len(data) * looks.index // 4])
        assert not list(folder.glob("*_map.png"))

    looks.between = dict.fromkeys((1, 2, 3, 4), grow)
    assert looks.run(folder, 9) == [("slow.png", None)]
    assert (folder / "slow_map.png").is_file()  # which is no image to be predicted on


def test_a_file_that_fails_is_tried_again_only_when_it_changes(looks: Looks, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    file = folder / "a.png"
    file.write_text("text")
    looks.between = {5: lambda: file.write_text("other text"), 8: lambda: photo(file)}
    found = looks.run(folder, 12, tmp_path / "out")
    assert [name for name, _ in found] == ["a.png"] * 3
    assert [error is None for _, error in found] == [False, False, True]
    assert "not an image" in str(found[0][1])


def test_a_file_that_changes_is_done_again_if_outputs_are_replaced(looks: Looks, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    photo(folder / "a.png")
    photo(folder / "b.png")
    looks.between = {4: lambda: photo(folder / "a.png", (40, 50)), 8: lambda: shutil.rmtree(output)}
    found = looks.run(folder, 12, output, existing="overwrite")
    assert [name for name, _ in found] == ["a.png", "b.png", "a.png"]
    looks.between = {4: lambda: photo(folder / "a.png", (30, 20))}
    assert looks.run(folder, 9, output) == [("a.png", None), ("b.png", None)]
    with Image.open(output / "a.png") as image:
        assert image.size == (50, 40)


def test_a_removed_and_a_second_file_of_a_stem(looks: Looks, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    photo(folder / "a.png")
    looks.between = {3: lambda: photo(folder / "a.jpg"), 6: (folder / "a.jpg").unlink}
    assert looks.run(folder, 9, output) == [("a.png", None), ("a.jpg", None)]
    assert sorted(path.name for path in output.iterdir()) == ["a.jpg.png", "a.png"]


def test_outputs_of_one_name_are_said_once_and_end_nothing(looks: Looks, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    photo(folder / "a.png")
    looks.between = {
        3: lambda: [photo(folder / name) for name in ("a.jpg", "a.png.png")],
        6: (folder / "a.png.png").unlink,
    }
    first, refused, added = looks.run(folder, 9, output)
    assert (first, added) == (("a.png", None), ("a.jpg", None))
    assert refused[0] == "in"
    assert re.search(r"a\.png\.png: both .* would be written to it; files added later wait", str(refused[1]))


def test_looks_at_unchanged_folders_list_nothing(looks: Looks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    photo(folder / "a.png")
    os.utime(folder, (1, 1))
    planned = []
    plan = watching.plan
    monkeypatch.setattr(watching, "plan", lambda *args, **kwargs: planned.append(1) or plan(*args, **kwargs))
    assert looks.run(folder, 8, tmp_path / "out") == [("a.png", None)]
    assert planned == [1]


def test_a_folder_that_is_removed_ends_it(looks: Looks, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    looks.between = {2: folder.rmdir}
    looks.index, looks.count = 0, 9
    network: Any = Brightness()
    with pytest.raises(InputError, match="in: cannot be watched"):
        list(watch(network, [str(folder)], None, Style()))


def test_the_command_refuses_what_cannot_be_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(photo(tmp_path / "a.png"))
    assert_refused(capsys, ["predict", file, "--watch"], f"--watch: {file} is not a folder")
    assert_refused(capsys, ["predict", "-", "--watch"], "--watch: - is not a folder")
    for output in ("-", str(tmp_path / "b.png")):
        assert_refused(capsys, ["predict", str(tmp_path), "--watch", "-o", output], f"{output} is not a folder")
    assert_refused(capsys, ["predict", str(tmp_path), "--watch", "--ray", "local"], "--watch: not with --ray")
    if Path("/proc/self").exists():  # in which not even root can write
        assert_refused(capsys, ["predict", "/proc/self", "--watch"], "/proc/self: cannot be written to")


@pytest.mark.slow
def test_the_command_prints_json_until_it_is_interrupted(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "bad.png").write_text("text")
    command = [*INTERRUPTIBLE, "predict", str(folder), "-o", str(output)]
    with subprocess.Popen(
        [*command, "--watch", "--json", "--checkpoint", "lite"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "not an image" in json.loads(process.stdout.readline())["error"]
        photo(folder / "a.png")
        line = json.loads(process.stdout.readline())
        assert line == {"input": str(folder / "a.png"), "output": str(output / "a.png")}
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "purinet: interrupted"
    assert (output / "a.png").is_file()
