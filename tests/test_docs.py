"""The documentation: it builds offline, its commands parse, those without requirements run, and the files and names
that it mentions exist."""

import contextlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from helpers.pages import Block, blocks_in, commands_in, parses
from PIL import Image

import purinet_jax.commands.evaluate
from purinet_jax.commands.main import main
from purinet_jax.data import write_synthetic

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose blocks run here unless their title says what they need; other tests run the commands of other pages.
RUN = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("data", "evaluate", "faq", "find", "install", "protocols", "quality")),
    *(ROOT / "docs" / f"{name}.md" for name in ("paper", "train", "reproduce", "numbers", "weights")),
]


def name_of(page: Path) -> str:
    return page.stem


def test_the_documentation_builds_and_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        # Links are for readers; what a browser loads by itself must be part of the site.
        text = page.read_text()
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]* src="?([^" >]+)', text)
        fetched += re.findall(r'<link[^>]* rel="?(?:stylesheet|icon|preconnect|preload)"?[^>]* href="?([^" >]+)', text)
        fetched += re.findall(r'<link[^>]* href="?([^" >]+)"?[^>]* rel="?(?:stylesheet|icon|preconnect|preload)', text)
        assert fetched
        assert [address for address in fetched if urlsplit(address).netloc] == []
    equations = (tmp_path / "paper" / "index.html").read_text()
    assert equations.count("<math ") == (ROOT / "docs" / "paper.md").read_text().count("```math") > 8
    assert "promotion_attention(" in re.sub("<[^>]+>", "", (tmp_path / "reference" / "index.html").read_text())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_parses(page: Path) -> None:
    for command in commands_in(page.read_text()):
        parses(command)


def test_the_pages_show_every_command() -> None:
    shown = {command.split()[1] for page in PAGES for command in commands_in(page.read_text())}
    assert shown >= {"benchmark", "convert", "evaluate", "predict", "prepare", "train"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_name_only_files_and_names_that_exist(page: Path) -> None:
    text = page.read_text()
    files = re.findall(r"\b((?:configs|docs|examples|scripts|tests|purinet_jax)/[\w./]+\w|benchmarks/\w+\.\w+)", text)
    # Training logs are in the repository but not in the source distribution.
    files = [name for name in files if not name.startswith("docs/training/")]
    assert [name for name in files if not (ROOT / name).exists()] == []
    for name in set(re.findall(r"`(purinet_jax(?:\.\w+)+)`", text)):
        assert pkgutil.resolve_name(name) is not None  # else raises AttributeError or ImportError


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_lines_fit(page: Path) -> None:
    # The row of a table cannot be wrapped; the README is also read as plain text.
    rows = page.name != "README.md"
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not (rows and line.startswith("|"))] == []


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages' commands name: images, a video, data sets and maps of other methods, all small."""
    folder = tmp_path_factory.mktemp("downloads")
    images, masks = (write_synthetic(folder / "made", 2, (48, 64)) / f"DUTS-TR-{kind}" for kind in ("Image", "Mask"))
    photos = sorted(images.iterdir())
    for name in ("photo.jpg", "photos/cat.jpg", "photos/dog.jpg", "more/deeper/bird.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos[0], folder / name)
    frames = [Image.open(photo) for photo in photos]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    _write_clip(folder / "clip.mp4", [np.asarray(frame) for frame in frames])

    (folder / "downloads").mkdir()
    for path, parts in {
        "DUTS-TE.zip": {"DUTS-TE-Image": images, "DUTS-TE-Mask": masks},
        "downloads/images.zip": {"images": images},
        "downloads/ground_truth_mask.zip": {"ground_truth_mask": masks},
        "downloads/basnet.zip": {"basnet": masks},
    }.items():
        with zipfile.ZipFile(folder / path, "w") as archive:
            for name, part in parts.items():
                for file in part.iterdir():
                    archive.write(file, f"{name}/{file.name}")
    for copy, part in {
        "DUTS-TE/DUTS-TE-Image": images,
        "DUTS-TE/DUTS-TE-Mask": masks,
        "ECSSD/images": images,
        "ECSSD/ground_truth_mask": masks,
        "U2Net": masks,
    }.items():
        shutil.copytree(part, folder / copy)
    shutil.rmtree(folder / "made")
    return folder


def _write_clip(path: Path, frames: list[np.ndarray]) -> None:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def run(block: Block) -> None:
    """Runs the Python code or the `purinet` commands of a block in this process; skips other programs."""
    if block.language == "python":
        exec(compile(block.text, "page", "exec"), NAMES)
    for command in commands_in(block.text):
        line, *redirections = re.split(" ([<>]) ", re.sub(" +#.*", "", command))
        with contextlib.ExitStack() as stack:
            for sign, file in zip(redirections[::2], map(str.strip, redirections[1::2]), strict=True):
                name, mode = ("stdin", "r") if sign == "<" else ("stdout", "w")
                opened = stack.enter_context(open(file, mode))
                stack.enter_context(pytest.MonkeyPatch.context()).setattr(sys, name, opened)
            assert main(shlex.split(line)[1:]) == 0, command


NAMES: dict[str, object] = {}
"""Names that the Python blocks of a page have defined, for its later blocks."""


@pytest.fixture
def page_folder(downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Changes to a folder with all downloads, in which a page is run."""
    shutil.copytree(downloads, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # Starting processes takes longer than measuring two images.
    monkeypatch.setattr(purinet_jax.commands.evaluate, "usable_cores", lambda: 0)
    NAMES.clear()
    yield
    NAMES.clear()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
@pytest.mark.usefixtures("page_folder")
def test_blocks_without_requirements_run(page: Path) -> None:
    text = page.read_text()
    blocks = list(blocks_in(text))
    assert 2 * len(blocks) == len(re.findall("^ *```", text, re.M))  # no block was missed
    for block in blocks:
        if not block.needs:
            run(block)
