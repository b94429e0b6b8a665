"""Paths that cannot be used are named in one line, with exit code 2; and users without a home."""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import assert_refused
from PIL import Image

from purinet_jax.commands.main import main
from purinet_jax.data import write_synthetic
from purinet_jax.files import atomic_path, write_atomically
from purinet_jax.weights.shipped import shipped_file

LITE = str(shipped_file("lite"))
TINY = ["--config.steps=1", "--config.data.size=32", "--config.batch_size=8", "--config.loop.workers=0", "--quiet"]
REGIONS = ["--config.losses.structural=region", "--config.losses.superpixels=files"]

# PATH is the path that cannot be used, OUT is one that can.
OPTIONS = {
    "predict IMAGE": "predict PATH -o OUT",
    "predict --output": "predict IMAGE -o PATH",
    "predict --checkpoint": "predict IMAGE -o OUT --checkpoint PATH",
    "predict --background": "predict IMAGE -o OUT --output-kind cutout --background PATH",
    "evaluate --data": "evaluate --data PATH --quiet",
    "evaluate --masks": "evaluate --masks PATH --maps MASKS --quiet",
    "evaluate --maps": "evaluate --masks MASKS --maps PATH --quiet",
    "evaluate --checkpoint": "evaluate --data DATA --checkpoint PATH --quiet",
    "evaluate --per-image": "evaluate --masks MASKS --maps MASKS --workers 0 --quiet --per-image PATH",
    "evaluate --plots": "evaluate --masks MASKS --maps MASKS --workers 0 --quiet --plots PATH",
    "convert SOURCE": "convert PATH.npz OUT.safetensors",
    "convert DEST": f"convert {LITE} PATH.safetensors",
    "export FILE": "export PATH --to stablehlo --size 32",
    "export --checkpoint": "export OUT --to stablehlo --checkpoint PATH",
    "prepare --data": "prepare duts --data PATH -o OUT --quiet",
    "prepare --output": "prepare duts --data DATA -o PATH --quiet",
    "train --data": "train --config tiny --data PATH -o OUT TINY",
    "train --output": "train --config tiny --data DATA -o PATH TINY",
    "train --config": "train --config PATH --data DATA -o OUT TINY",
    "train --validation": "train --config tiny --data DATA --validation PATH -o OUT TINY",
    "train --init": "train --config tiny --data DATA --init PATH -o OUT TINY",
    "train --superpixels": "train --config tiny --data DATA --superpixels PATH -o OUT TINY REGIONS",
    "finetune DATA": "finetune PATH -o OUT",
    "finetune --output": "finetune DATA -o PATH --size 32",
    "finetune --checkpoint": "finetune DATA -o OUT --checkpoint PATH",
    "serve --token-file": "serve --port 0 --token-file PATH",
    "serve --checkpoint": "serve --port 0 --checkpoint PATH",
}


@contextmanager
def permissions_respected() -> Iterator[None]:
    """Takes from this thread, if it is root's, the capabilities to read and write what permissions forbid."""
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert library.capget(header, sets) == 0
    before = sets[0]
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert library.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert library.capset(header, sets) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("paths")
    write_synthetic(folder / "data", 3, size=(40, 60), seed=0)
    (folder / "file").write_text("")
    (folder / "loop").symlink_to("loop")
    (folder / "closed").mkdir(mode=0)
    yield folder
    (folder / "closed").chmod(0o700)


def command_line(option: str, folder: Path, path: Path, output: Path) -> list[str]:
    """Returns an option's command line with this path for PATH."""
    data = folder / "data" / "DUTS-TR"
    image = min((data / "DUTS-TR-Image").iterdir())
    values = {"DATA": data, "MASKS": data / "DUTS-TR-Mask", "IMAGE": image, "OUT": output, "PATH": path}
    arguments: list[str] = []
    for word in OPTIONS[option].split():
        name, dot, ending = word.partition(".")
        lists = {"TINY": TINY, "REGIONS": REGIONS}
        arguments += lists.get(word, [f"{values[name]}{dot}{ending}" if name in values else word])
    return arguments


@pytest.mark.parametrize(
    "path",
    ["x" * 300, "file/inside", "loop/inside", "closed/inside"],
    ids=["too long", "below a file", "circular link", "closed folder"],
)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_path_that_cannot_be_used_is_named(
    option: str, path: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder / path
    arguments = command_line(option, folder, bad, tmp_path / "out")
    before = sorted(folder.rglob("*"))
    with permissions_respected():
        # Of a path below a file or a link, messages may name the file or link.
        assert_refused(capsys, arguments, str(bad if len(path) > 100 else bad.parent))
    assert sorted(folder.rglob("*")) == before
    assert not list(tmp_path.iterdir())


# What takes long, which an output that cannot be written is refused before.
WORK = {
    "evaluate --per-image": "purinet_jax.evaluation.methods.open_masks",
    "evaluate --plots": "purinet_jax.evaluation.methods.open_masks",
    "convert DEST": "purinet_jax.weights.files.read_tensors",
    "export FILE": "purinet_jax.prediction.predictor.load",
    "prepare --output": "purinet_jax.data.prepare.bad_pairs",
    "train --output": "purinet_jax.training.train.open_pairs",
    "finetune --output": "purinet_jax.training.train.open_pairs",
    "predict --output": "purinet_jax.prediction.files.render_stream",
}


@pytest.mark.parametrize("option", WORK)
def test_outputs_are_refused_before_the_work(
    option: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "readable").mkdir(mode=0o500)
    arguments = command_line(option, folder, tmp_path / "readable" / "inside", tmp_path / "out")
    monkeypatch.setattr(WORK[option], lambda *_, **__: pytest.fail("the work began"))
    with permissions_respected():
        assert_refused(capsys, arguments, "inside", "Permission denied")
    assert not list((tmp_path / "readable").iterdir())


def test_other_images_are_predicted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted((folder / "data" / "DUTS-TR" / "DUTS-TR-Image").iterdir())
    bad = [str(folder / name) for name in ("x" * 300, "file/a.png", "loop", "closed/a.png")]
    arguments = ["predict", str(images[0]), *bad, str(images[1]), "-o", str(tmp_path / "out"), "--checkpoint", "lite"]
    with permissions_respected():
        assert main([*arguments, "--quiet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(
        f"purinet: {name}: " in line
        for name, line in zip(bad, sorted(lines, key=lambda x: bad.index(x.split(": ")[1])), strict=True)
    )
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("pattern", ["", "/*.jpg", "/**/*.png"])
def test_a_closed_folder_of_images_is_not_called_empty(
    pattern: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = folder / "closed"
    with permissions_respected():
        assert main(["predict", f"{closed}{pattern}", "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"purinet: {closed}: cannot be read: Permission denied\n"


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: cannot be written: not a regular file"):
        write_atomically(tmp_path / "pipe", b"data")
    with pytest.raises(OSError, match="not a regular file"), atomic_path(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.slow
def test_a_user_without_home_needs_none(tmp_path: Path) -> None:
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("NOT TESTED: a user without home (needs root and setpriv)")
    tmp_path.chmod(0o777)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    # It may read everything, as this installation, which may lie in root's home.
    unknown = "setpriv --reuid=54321 --regid=54321 --clear-groups --inh-caps=+dac_read_search"
    program = [*unknown.split(), "--ambient-caps=+dac_read_search", sys.executable, "-m", "purinet_jax.commands.main"]
    nothing = {"PATH": os.environ["PATH"]}

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*program, *arguments],
            env=nothing | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    assert run("predict", "photo.png", "--checkpoint", "lite", "--quiet") == (0, "", "")
    assert (tmp_path / "photo_map.png").is_file()
    # A cache that cannot be written.
    assert run("predict", "photo.png", "--checkpoint", "lite", "--quiet", "--overwrite", HOME="/proc/nowhere") == (
        0,
        "",
        "",
    )
    code, _, said = run("prepare", "duts", "--data", ".")
    assert (code, said) == (2, "purinet: there is no home folder to keep data sets in; name one with --output\n")


def test_devices_are_not_read(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # An empty one stands for /dev/zero, which would fill the memory.
    masks, image = (next((folder / "data" / "DUTS-TR").glob(f"DUTS-TR-{kind}")) for kind in ("Mask", "Image"))
    for arguments in (
        ["evaluate", "--masks", "/dev/null", "--maps", str(masks)],
        ["evaluate", "--masks", str(masks), "--maps", "/dev/null"],
        ["prepare", "duts", "--data", "/dev/null", "-o", str(tmp_path)],
        ["predict", str(image), "--output-kind", "cutout", "--background", "/dev/null", "-o", str(tmp_path)],
        ["predict", "/dev/null", "-o", str(tmp_path)],
        ["serve", "--token-file", "/dev/null"],
    ):
        assert_refused(capsys, arguments, "/dev/null: ", "is a device")
    assert not list(tmp_path.iterdir())
