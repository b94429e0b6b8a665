"""The examples run on small networks and images."""

import ast
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.project_scripts import ROOT, import_script
from helpers.tiny import tiny_model, tiny_variables
from helpers.training_runs import made_small, tiny_config, write_config
from ml_collections import ConfigDict
from PIL import Image

from purinet_jax.data import open_pairs, write_synthetic
from purinet_jax.network.config import ModelConfig
from purinet_jax.weights.files import save_variables

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made_small(monkeypatch)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        made_small(patch)
        save_variables(path, tiny_variables(), ModelConfig.from_model(tiny_model()), size=16)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return path


def example(name: str) -> ModuleType:
    return import_script(name, "examples")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_own_network_learns_with_both_attentions_and_the_loss() -> None:
    first, last = example("own_network").main(["--steps", "12"])
    assert last < 0.8 * first


def test_the_gradient_of_a_map_is_that_of_its_mean(weights: Path, photo: Path, tmp_path: Path) -> None:
    module = example("image_gradient")
    module.main([str(photo), str(tmp_path / "gradient.png"), "--checkpoint", str(weights)])
    assert size(tmp_path / "gradient.png") == (32, 16)
    found = np.asarray(module.influence(tiny_model(), tiny_variables(), np.full((16, 16, 3), 90, np.uint8)))
    assert found.shape == (16, 16)
    assert (found >= 0).all()
    assert found.max() > 0


def test_an_ensemble_equals_its_networks_one_by_one(weights: Path, photo: Path, tmp_path: Path) -> None:
    module = example("ensemble")
    variables = [jax.tree.map(lambda x, k=k: x * (1 + k / 10), dict(tiny_variables())) for k in range(2)]
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    maps = module.ensemble_maps(tiny_model(), variables, jnp.asarray(images))
    for own, found in zip(variables, maps, strict=True):
        np.testing.assert_allclose(found, module.saliency_maps(tiny_model(), own, images), atol=1e-5)
    module.main([str(photo), str(tmp_path / "out.png"), str(weights), str(weights)])
    assert size(tmp_path / "out.png") == (48, 16)


def test_an_exported_network_runs_by_jax_alone(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("exported")
    module.main([str(tmp_path / "model"), "--checkpoint", str(weights)])
    assert "uint8[batch,16,16,3] → float32[batch,16,16], (2, 16, 16) for two images" in capsys.readouterr().out
    program = jax.export.deserialize(bytearray((tmp_path / "model").read_bytes()))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    expected = module.saliency_maps(tiny_model(), tiny_variables(), images)
    np.testing.assert_allclose(program.call(images), expected, atol=1e-5)


@pytest.mark.slow
def test_a_custom_loss_is_minimised_and_logged(tmp_path: Path) -> None:
    data = write_synthetic(tmp_path / "data", 8, size=(40, 60), seed=0)
    arguments = [str(write_config(tmp_path, tiny_config())), str(data), str(tmp_path / "run")]
    parts = ["--config.model.attention=()", "--config.losses.structural=none", "--config.steps=2"]
    example("own_loss").main([*arguments, *parts])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    terms = lines[-1]
    assert terms["train/boundary"] > 0
    assert terms["train/loss"] == pytest.approx(terms["train/main"] + terms["train/boundary"], rel=1e-5)


def test_the_ablation_trains_its_rows_with_one_difference_and_measures_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("ablation")
    trained: list[tuple[ConfigDict, Path]] = []

    def pretend(config: ConfigDict, data: Path, output: Path, *, init: Path) -> Any:
        trained.append((config, output))
        return state_at(config.steps if len(trained) != 3 else 1)

    monkeypatch.setattr(module, "train", pretend)
    monkeypatch.setattr(module, "measure_runs", lambda data, output: [])
    monkeypatch.setattr(module, "to_markdown", lambda rows: "the table\n")
    module.main(["data.zip", "init.npz", str(tmp_path), "--config.steps=3"])
    assert capsys.readouterr().out == "the table\n"
    assert [output.relative_to(tmp_path) for _, output in trained] == [Path("seed0/baseline"), Path("seed0/promotion")]
    baseline, promotion = (config.to_dict() for config, _ in trained)
    assert baseline["model"].pop("attention") == ()
    assert promotion["model"].pop("attention") == ("promotion",)
    assert baseline == promotion
    assert baseline["steps"] == 3
    module.main(["data.zip", "init.npz", str(tmp_path), "--config.steps=3"])  # stopped in the first row
    assert len(trained) == 3
    assert capsys.readouterr().out == ""


def state_at(step: int) -> Any:
    """The part of `train`'s result that the example reads."""
    return type("State", (), {"step": step})


def test_drawings_are_of_the_pairs_held_out_and_keep_their_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_synthetic(tmp_path / "data", 12, size=(40, 60), seed=0)
    monkeypatch.setattr("sys.argv", ["drawings.py", str(data), str(tmp_path / "drawings"), "--pairs", "10"])
    example("drawings").main()
    held = open_pairs(data).hold_out(10, seed=0)[1]
    drawn = {part: open_pairs(tmp_path / "drawings" / part) for part in ("train", "test")}
    assert {part: len(pairs) for part, pairs in drawn.items()} == {"train": 8, "test": 2}
    assert sorted(drawn["train"].names + drawn["test"].names) == list(held.names)
    for pairs in drawn.values():
        for index, name in enumerate(pairs.names):
            original = held[held.names.index(name)]
            np.testing.assert_array_equal(pairs[index]["mask"], original["mask"])
            drawing = pairs[index]["image"]
            assert np.ptp(drawing, axis=-1).max() == 0
            assert drawing.mean() > 200 > original["image"].mean()


def cells(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path: Path, weights: Path) -> None:
    # In this process, so that it uses the small network; a cell of settings gets smaller ones.
    smaller = {"steps": 3, "checkpoint": str(weights)}
    namespace: dict[str, Any] = {}
    for cell in cells(path):
        exec(compile(cell, str(path), "exec"), namespace)
        namespace |= {name: smaller[name] for name in smaller if re.match(rf"{name} = ", cell)}
    assert np.isfinite(namespace.get("losses", [0])).all()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_the_functions_of_its_script(path: Path) -> None:
    def definitions(text: str) -> dict[str, str]:
        kinds = (ast.FunctionDef, ast.ClassDef)
        return {node.name: ast.unparse(node) for node in ast.parse(text).body if isinstance(node, kinds)}

    script = definitions(path.with_suffix(".py").read_text())
    found = definitions("\n".join(cells(path)))
    shared = found.keys() & script.keys()
    assert shared
    assert {name: found[name] for name in shared} == {name: script[name] for name in shared}


def test_every_example_is_in_the_docs_and_says_how_it_is_run() -> None:
    docs = (ROOT / "docs" / "examples.md").read_text()
    for path in sorted(EXAMPLES.glob("*.py")):
        assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(path.read_text())) or "")
        assert f"`examples/{path.name}`" in docs or f"examples/{path.name}" in docs
    assert all(f"examples/{path.name}" in docs for path in NOTEBOOKS)
