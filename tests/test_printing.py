"""Standard output and error that are closed, full or cannot show a name."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COMMAND = [sys.executable, "-m", "purinet_jax.commands.main"]


def test_a_reader_that_has_ended_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([*COMMAND, "--version"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_reader_of_an_image_that_has_ended_is_no_error(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    command = [*COMMAND, "predict", "-", "-o", "-", "--checkpoint", "lite", "--quiet"]
    reading, writing = os.pipe()
    os.close(reading)
    with open(tmp_path / "photo.png", "rb") as photo:
        ended = subprocess.run(command, stdin=photo, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run([*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 2
    assert ended.stderr == b"purinet: standard output: No space left on device\n"


def test_a_name_that_is_no_utf8_is_printed_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"no image")
    command = [*COMMAND, "predict", os.fsdecode(b"\xff.jpg"), "--checkpoint", "lite"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert ended.returncode == 2
    assert b"\\udcff.jpg: " in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_name_with_line_breaks_is_printed_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a\n\x1b[2Jb.jpg").write_bytes(b"no image")
    for arguments in (["predict", "images", "--quiet"], ["predict", "no\n\x1b[2Jthing", "--quiet"]):
        ended = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stderr.startswith("purinet: ")
        assert "\\n\\x1b[2J" in ended.stderr
        assert ended.stderr.count("\n") == 1
