"""Configurations, scripts, and the versions that they install."""

import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from helpers.pages import commands_in, parses
from helpers.project_scripts import import_script
from ml_collections import ConfigDict
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from purinet_jax.errors import InputError
from purinet_jax.network.config import ModelConfig
from purinet_jax.training.configurations import known_configurations, load_config
from purinet_jax.training.losses import Objective
from purinet_jax.training.optim import GROUPS, OptimizerConfig, make_optimizer

ROOT = Path(__file__).parents[1]
CONFIGS = known_configurations()
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_loads_and_the_package_accepts_its_parts(name: str) -> None:
    config = load_config(name)
    assert isinstance(config, ConfigDict)
    ModelConfig.from_dict(config.model).build()
    Objective(**config.losses)
    make_optimizer(OptimizerConfig(**config.optimizer), config.steps)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_how_it_is_run(name: str) -> None:
    path = ROOT / "configs" / f"{name}.py"
    (command,) = commands_in(path.read_text())
    parses(command)
    assert f"--config {name} " in command or command.startswith(f"purinet {name} ")
    # A path loads the same configuration.
    assert load_config(str(path)) == load_config(name)


def test_an_unknown_configuration_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as raised:
        load_config("purnet_large")
    assert str(raised.value) == f"purnet_large: no such configuration file; known by name are {', '.join(CONFIGS)}"
    assert {"purnet_lite", "purnet_resnet50_stage3", "tiny"} <= set(CONFIGS)
    assert "base" not in CONFIGS


def test_a_configuration_elsewhere_can_start_from_the_base(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from purinet_jax.configs import base\n\n"
        "def get_config():\n    config = base.get_config()\n    config.steps = 7\n    return config\n"
    )
    expected = load_config("purnet_resnet50_stage3").copy_and_resolve_references()
    expected.steps = 7
    assert load_config(str(path)) == expected


def test_fixed_recipe_is_stage_3_but_for_losses_and_rates() -> None:
    stage3, fixed = (load_config(name).to_dict() for name in ("purnet_resnet50_stage3", "purnet_fixed"))
    assert fixed["losses"].pop("released") is False
    assert stage3["losses"].pop("released") is True
    assert fixed["optimizer"].pop("decaying_groups") == GROUPS
    assert stage3["optimizer"].pop("decaying_groups") == ("backbone",)
    assert fixed == stage3
    assert fixed["reset_upsampling"] is False


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-newest.txt"])
def test_constraints_are_exact_versions_and_cover_the_dependencies(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==\d[\w.]*", line)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(x) for x in (*project["dependencies"], *project["optional-dependencies"]["test"])]
    assert [str(x) for x in requirements if ">=" not in str(x)] == []  # which `scripts/test.sh --lowest` could not test
    versions = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(versions) == len(lines)
    assert [str(x) for x in requirements if not x.specifier.contains(versions[canonicalize_name(x.name)])] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_is_valid_bash_that_stops_at_the_first_failure(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "\nset -euo pipefail\n" in path.read_text()


def test_workflows_and_hooks_agree_with_scripts_and_versions() -> None:
    commands = []
    for name in ("tests", "docs"):
        (job,) = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())["jobs"].values()
        commands += [step["run"] for step in job["steps"] if "run" in step]
        if name == "tests":
            pythons = job["strategy"]["matrix"]["python"]
    scripts = re.findall(r"scripts/\S+", "\n".join([*commands, (ROOT / ".ci/run").read_text()]))
    assert scripts == ["scripts/test.sh"] * 3
    assert "mkdocs build --strict" in commands
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert [f"Programming Language :: Python :: {python}" for python in pythons] == [
        line for line in classifiers if re.search(r":: 3\.\d+$", line)
    ]
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={hooks['rev'].removeprefix('v')}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def contact_sheet() -> ModuleType:
    return import_script("contact_sheet")


def test_the_contact_sheet_aligns_each_image_with_its_mask_and_map(contact_sheet: ModuleType, tmp_path: Path) -> None:
    # The k-th image, mask and map have different colours; they are wider than high and padded to squares.
    colours = {"images": 60, "masks": 120, "maps": 180}
    for folder, value in colours.items():
        (tmp_path / folder).mkdir()
        for k in range(5):
            name = f"{k}.jpg" if folder == "images" else f"{k}.png"
            Image.new("L", (40, 20), value + 10 * k).save(tmp_path / folder / name)
    folders = [tmp_path / folder for folder in colours]
    sheet = contact_sheet.contact_sheet(*folders, across=2, cell=16)
    assert sheet.shape == (2 * 16, 2 * 3 * 16, 3)
    middles = sheet[8::16, 8::16, 0].astype(int)
    expected = [[v + 10 * k for k in row for v in colours.values()] for row in ((0, 1), (2, 3))]
    np.testing.assert_allclose(middles, expected, atol=2)
    assert contact_sheet.contact_sheet(*folders, across=1, cell=16, count=3).shape == (48, 48, 3)


def test_the_edge_sheet_shows_the_longest_edge(tmp_path: Path) -> None:
    image = np.full((60, 90, 3), 40, np.uint8)
    image[20:40, 55:75] = 200  # its edge lies in one cell of 32 pixels
    Image.fromarray(image).save(tmp_path / "photo.png")

    class Bright:
        """Cuts out what is bright."""

        def cutout(self, image: np.ndarray, background: object = None, matting: bool = False) -> np.ndarray:
            alpha = np.where(image[..., :1] > 100, np.uint8(255), np.uint8(0))
            return np.dstack([image, alpha]) if background is None else image // 2 + 100 * matting

    cells = import_script("edge_sheet").edge_row(Bright(), tmp_path / "photo.png", 32)
    assert [cell.shape for cell in cells] == [(32, 32, 3)] * 5
    _, part, guided, matted, blurred = cells
    assert (part == 200).all(axis=2).sum() == 20 * 20
    np.testing.assert_array_equal(guided, part // 2)
    for cell in (matted, blurred):
        np.testing.assert_array_equal(cell, part // 2 + 100)
