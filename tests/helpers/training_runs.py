"""A training run small enough for a test: its configuration, its command line, and its files."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from helpers.tiny import TinyBackbone, shared_optimizer, shared_pmap_step
from purinet_jax.network.backbones import BACKBONES
from purinet_jax.training import train
from purinet_jax.training.configurations import load_config
from purinet_jax.weights.runs import load_checkpoint

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from helpers.tiny import TinyBackbone
from purinet_jax.network.backbones import BACKBONES
from purinet_jax.commands.main import main
BACKBONES["tiny"] = TinyBackbone
sys.exit(main(sys.argv[1:]))
"""


def made_small(patch: pytest.MonkeyPatch) -> None:
    """Adds the tiny backbone, and lets runs with the same settings share compiled programs."""
    patch.setitem(BACKBONES, "tiny", TinyBackbone)
    patch.setattr(train, "make_optimizer", shared_optimizer)
    patch.setattr(train, "pmap_step", shared_pmap_step)


def tiny_config(**settings: Any) -> ConfigDict:
    config = load_config("tiny")
    config.model.backbone = "tiny"
    config.model.channels = 8
    config.steps = 6
    config.batch_size = 4
    config.data.size = 32
    config.loop.log_every = 1
    config.loop.checkpoint_every = 2
    config.loop.validate_every = 3
    config.loop.panel_every = 4
    config.update_from_flattened_dict(settings)
    return config


def steps_logged(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train/loss" in line]


def assert_same_variables(run: Path, expected: Path) -> None:
    step = max(int(child.name) for child in (expected / "checkpoints").iterdir() if child.name.isdigit())
    trees = [load_checkpoint(folder / "checkpoints" / str(step))[0] for folder in (run, expected)]
    for value, reference in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(value, reference)


def command_line(data: Path, config: Path) -> list[str]:
    script = SCRIPT.format(tests=str(ROOT / "tests"))
    return [sys.executable, "-c", script, "train", "--config", str(config), "--data", str(data), "--quiet"]


def write_config(folder: Path, config: ConfigDict) -> Path:
    path = folder / "config.py"
    path.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    return path


# Stage 1's network, for tests that start processes.
STAGE_1 = {"model.attention": (), "losses.structural": "none", "loop.panel_every": 0}
