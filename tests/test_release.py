"""The source distribution and the wheel: what they contain, the installed package outside the checkout, and one version
in all files of a release."""

import os
import re
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import urllib.request
import venv
import zipfile
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from purinet_jax.data import write_synthetic
from purinet_jax.version import __version__

ROOT = Path(__file__).parents[1]
# Hidden files that the source distribution holds.
HIDDEN = {".ci", ".github", ".pre-commit-config.yaml"}
# Not part of a clean checkout: output of the demo, of training and of builds.
LEFT_OUT = {".git", "build", "demo", "dist", "runs", "site"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Paths of the source distribution and the wheel, built from a copy, since building writes into the folder."""
    folder = tmp_path_factory.mktemp("release")
    copy, built = folder / "copy", folder / "dist"
    for top in ROOT.iterdir():
        if (
            top.name not in LEFT_OUT
            and (not top.name.startswith(".") or top.name in HIDDEN)
            and not top.name.endswith((".egg-info", ".zip"))
        ):
            (copy / top.name).parent.mkdir(exist_ok=True)
            (copy / top.name).symlink_to(top)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(copy)],
        check=True,
        capture_output=True,
    )
    (source,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and this environment's other packages."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    programs = environment / "bin"
    (packages,) = environment.glob("lib/python*/site-packages")
    # .pth files of that folder are not read, so that the checkout is not importable.
    (packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", "--no-compile", str(distributions[1])], check=True)
    return programs


def outside() -> dict[str, str]:
    """The environment variables without the checkout's path, and with one device."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"XLA_FLAGS": kept["XLA_FLAGS"].replace("device_count=4", "device_count=1")}


def run(programs: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of the environment in a folder outside the checkout."""
    command = [str(programs / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=folder, env=outside(), capture_output=True, text=True)


def test_the_wheel_is_small_and_holds_only_the_package(distributions: tuple[Path, Path]) -> None:
    _, wheel = distributions
    assert wheel.name == f"purinet_jax-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 25e6
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"purinet_jax", f"purinet_jax-{__version__}.dist-info"}
    assert {
        "purinet_jax/configs/tiny.py",
        "purinet_jax/data/sets.toml",
        "purinet_jax/py.typed",
        "purinet_jax/weights/purnet_context.safetensors",
        "purinet_jax/weights/purnet_context.traced.safetensors",
        "purinet_jax/weights/purnet_lite.safetensors",
        f"purinet_jax-{__version__}.dist-info/licenses/LICENSE",
    } <= set(names)


def test_the_source_distribution_can_be_tested_and_documented(distributions: tuple[Path, Path]) -> None:
    source, _ = distributions
    assert source.stat().st_size < 25e6
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        ".ci/run",
        ".github/workflows/tests.yml",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "constraints.txt",
        "docs/index.md",
        "mkdocs.yml",
        "scripts/test.sh",
        "tests/conftest.py",
        "tests/fixtures/golden/README.md",
        "tests/test_release.py",
    } <= names
    assert [name for name in names if "__pycache__" in name or name.startswith("docs/training/")] == []


@pytest.mark.slow
def test_the_installed_package_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "python", "-c", "import purinet_jax; print(purinet_jax.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)
    assert run(installed, tmp_path, "purinet", "--version").stdout.strip() == __version__
    assert "predict" in run(installed, tmp_path, "purinet", "--help").stdout

    images = write_synthetic(tmp_path, 1, (48, 64)) / "DUTS-TR-Image"
    (image,) = images.iterdir()
    predicted = run(installed, tmp_path, "purinet", "predict", str(image), "-o", "map.png", "--quiet")
    assert predicted.returncode == 0, predicted.stderr
    with Image.open(image) as original, Image.open(tmp_path / "map.png") as saliency:
        assert saliency.size == original.size


@pytest.mark.slow
def test_the_installed_package_trains_exports_and_serves(installed: Path, tmp_path: Path) -> None:
    images = write_synthetic(tmp_path / "data", 2, (40, 40)) / "DUTS-TR-Image"
    smallest = "data.size=32 steps=1 batch_size=2 loop.workers=0 model.attention=() losses.structural=none"
    train = [f"--config.{setting}" for setting in smallest.split()]
    trained = run(
        installed, tmp_path, "purinet", "train", "--config", "tiny", "--data", "data", "-o", "run", "--quiet", *train
    )
    assert trained.returncode == 0, trained.stderr
    checkpoint = ("--checkpoint", "run")
    exported = run(installed, tmp_path, "purinet", "export", "--to", "stablehlo", *checkpoint, "tiny.stablehlo")
    assert exported.returncode == 0, exported.stderr
    assert "export.deserialize(" in exported.stdout
    assert (tmp_path / "tiny.stablehlo").stat().st_size > 100_000

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    image, page = next(images.iterdir()), f"http://127.0.0.1:{port}/"
    command = [str(installed / "purinet"), "serve", "--port", port, *checkpoint]
    with subprocess.Popen(command, cwd=tmp_path, env=outside(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = list(takewhile(lambda line: "serving on" not in line, process.stderr))
            assert process.poll() is None, "".join(lines)
            with urllib.request.urlopen(f"{page}v1/map", image.read_bytes(), timeout=60) as response:
                assert Image.open(response).size == (40, 40)
        finally:
            process.terminate()
        rest = process.communicate()[1]
        assert process.returncode == 0, rest


def test_the_installed_package_finds_its_configurations(installed: Path, tmp_path: Path) -> None:
    train = ("purinet", "train", "--data", "nothing.zip", "-o", "run", "--quiet", "--config")
    unknown = run(installed, tmp_path, *train, "purnet_large")
    assert unknown.returncode == 2
    assert "known by name are ablation, " in unknown.stderr
    known = run(installed, tmp_path, *train, "tiny")
    assert known.returncode == 2
    assert known.stderr.strip() == "purinet: nothing.zip: no such file or folder"


def test_all_files_state_the_same_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert __version__ == version
    sections = re.findall(r"^## (.+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert next(section for section in sections if not section.endswith("(unreleased)")) == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    # Required by the Citation File Format 1.2.0.
    assert {"authors", "cff-version", "message", "title"} <= citation.keys()
    assert {"authors", "title", "type"} <= citation["preferred-citation"].keys()
