"""The ablation: rows that differ only in the paper's parts, and the table of their runs' numbers."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.project_scripts import ROOT, import_script
from helpers.tiny import tiny_model, tiny_state, tiny_variables
from helpers.training_runs import made_small, tiny_config

from purinet_jax.data import open_pairs, write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.network.config import ModelConfig
from purinet_jax.prediction.predictor import Predictor
from purinet_jax.training import checkpoints
from purinet_jax.training.configurations import load_config
from purinet_jax.training.losses import Objective
from purinet_jax.weights.runs import HELD_OUT

SCRIPT = ROOT / "scripts" / "ablation.sh"
TABLE = import_script("ablation_table")
BOTH = ("promotion", "rectification")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made_small(monkeypatch)


def run_script(tmp_path: Path, *arguments: str, stopped: str = "none") -> list[list[str]]:
    """The commands that the script runs; training writes its last checkpoint unless the row is `stopped`."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    log = tmp_path / "log"
    log.write_text("")
    (programs / "purinet").write_text(
        "#!/usr/bin/env bash\n"
        f'printf "%q " purinet "$@" >> {log}; echo >> {log}\n'
        'while [ "$1" != -o ]; do shift; done; run=$2\n'
        'for argument in "$@"; do case $argument in --config.steps=*) steps=${argument#*=} ;; esac; done\n'
        f'[ "$(basename "$run")" = {stopped} ] || mkdir -p "$run/checkpoints/$steps"\n'
    )
    (programs / "python").write_text(f'#!/usr/bin/env bash\nprintf "%q " python "$@" >> {log}; echo >> {log}\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(SCRIPT), *arguments], check=True, env=environment, stderr=subprocess.DEVNULL)
    return [shlex.split(line) for line in log.read_text().splitlines()]


def test_the_script_trains_each_row_once_and_rows_differ_only_in_their_parts(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    arguments = ["data.zip", "init.npz", str(output), "4", "32", "1", "--config.model.backbone=tiny"]
    stopped = run_script(tmp_path, *arguments, stopped="rectification")
    assert [Path(command[command.index("-o") + 1]).name for command in stopped] == [
        "baseline",
        "promotion",
        "rectification",
    ]
    *rows, table = run_script(tmp_path, *arguments)
    names = [Path(command[command.index("-o") + 1]).relative_to(output / "seed1").as_posix() for command in rows]
    assert names == ["rectification", "attentions", "structural", "all", "ssim", "iou"]
    assert table[:2] == ["python", str(SCRIPT.with_name("ablation_table.py"))]
    assert table[2:] == ["data.zip", str(output)]

    found = {}
    for command in (*stopped[:2], *rows):
        config = load_config("ablation", [word for word in command if word.startswith("--config.")]).to_dict()
        assert (config["steps"], config["data"]["size"], config["seed"], config["model"]["backbone"]) == (
            4,
            32,
            1,
            "tiny",
        )
        ModelConfig.from_dict(config["model"]).build()
        Objective(**config["losses"])
        name = Path(command[command.index("-o") + 1]).name
        found[name] = config["model"].pop("attention"), config["losses"].pop("structural"), config["losses"].pop("iou")
        assert config == load_config("ablation", [*arguments_of(config)]).to_dict() | {
            "model": config["model"],
            "losses": config["losses"],
        }
    assert found == {
        "baseline": ((), "none", False),
        "promotion": (("promotion",), "none", False),
        "rectification": (("rectification",), "none", False),
        "attentions": (BOTH, "none", False),
        "structural": ((), "region", False),
        "all": (BOTH, "region", False),
        "ssim": (BOTH, "ssim", False),
        "iou": (BOTH, "none", True),
    }


def arguments_of(config: dict) -> list[str]:
    """The overrides of all rows."""
    return ["--config.steps=4", "--config.data.size=32", "--config.seed=1", "--config.model.backbone=tiny"]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A data set, and the folder of two rows' runs, one of them with two seeds; the networks are not trained."""
    data = write_synthetic(tmp_path / "data", 5, size=(40, 60), seed=0)
    output = tmp_path / "runs"
    names = open_pairs(data).names
    for seed, name, attention in ((0, "promotion", ("promotion",)), (0, "baseline", ()), (1, "baseline", ())):
        run = output / f"seed{seed}" / name
        config = tiny_config(seed=seed, **{"model.attention": attention, "losses.structural": "none"})
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(config.to_dict()))
        (run / HELD_OUT).write_text("".join(f"{name}\n" for name in names[seed : seed + 2]))
        state = replace(tiny_state(attention=attention), step=jnp.asarray(6))
        with checkpoints.open_checkpoints(run, 1) as checkpointer:
            record = checkpoints.RunRecord(config.to_dict(), data="", bad=[])
            checkpoints.save_checkpoint(checkpointer, state, record, None)
            checkpointer.wait()
    return data, output


@pytest.mark.slow
def test_rows_are_measured_on_the_pairs_that_their_runs_held_out(runs: tuple[Path, Path]) -> None:
    data, output = runs
    rows = TABLE.measure_runs(data, output, progress=False)
    assert [(row.name, row.attention, row.structural, row.iou, row.seeds) for row in rows] == [
        ("baseline", (), "none", False, (0, 1)),
        ("promotion", ("promotion",), "none", False, (0,)),
    ]
    # By hand: both pairs of seed 1, stretched as in the protocol.
    pairs = open_pairs(data)
    predictor = Predictor(tiny_model(attention=()), tiny_variables(), 32)
    errors = []
    for index in (1, 2):
        saliency = np.floor(predictor.predict(pairs[index]["image"], refine=False) * 255)
        stretched = (saliency - saliency.min()) / np.ptp(saliency)
        errors.append(np.abs(stretched - pairs[index]["mask"]).mean())
    assert rows[0].numbers["mae"][1] == pytest.approx(np.mean(errors), abs=0.01)
    assert json.loads(TABLE.to_json(rows))[1]["numbers"]["mae"] == list(rows[1].numbers["mae"])

    config = output / "seed0" / "promotion" / "config.json"
    settings = json.loads(config.read_text())
    for change, message in (({"steps": 7}, "config.steps is 7, but 6 in"), ({"dtype": "bfloat16"}, "config.dtype")):
        config.write_text(json.dumps(settings | change))
        with pytest.raises(InputError, match=f"promotion: {message}"):
            TABLE.measure_runs(data, output, progress=False)
    with pytest.raises(InputError, match="no runs in its folders"):
        TABLE.measure_runs(data, output / "seed0", progress=False)


def test_the_table_shows_the_effect_of_each_part() -> None:
    numbers = dict.fromkeys(("weighted_f", "s_measure", "f_max", "boundary_iou"), (0.8,))
    rows = [
        TABLE.AblationRow("baseline", (), "none", False, (0,), {"mae": (0.05,), **numbers}),
        TABLE.AblationRow("all", BOTH, "region", False, (0, 1), {"mae": (0.044, 0.046), **numbers}),
    ]
    assert TABLE.to_markdown(rows) == (
        "| row | promotion | rectification | structural | IoU | seeds | MAE ↓ | ΔMAE | wF ↑ | S ↑ | maxF ↑ | BIoU ↑ |\n"
        "| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| baseline |  |  |  |  | 0 | 0.0500 | +0.0000 | .800 | .800 | .800 | .800 |\n"
        "| all | × | × | region |  | 0, 1 | 0.0450 (spread 0.0020) | -0.0050 | .800 | .800 | .800 | .800 |\n"
    )
