"""Training runs' folders. `checkpoints/<step>/` (Orbax) holds `state` (parameters, BatchNorm statistics, perhaps their
average, and more) and `run` (JSON with the model's configuration); `training.checkpoints` writes them.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from purinet_jax.errors import InputError
from purinet_jax.files import one_line
from purinet_jax.network.config import ModelConfig
from purinet_jax.weights.untrusted import named

FOLDER = "checkpoints"
"""The name of the folder of checkpoints in a run's folder."""

HELD_OUT = "held_out.txt"
"""The name of the file of the held-out pairs' names, one a line."""


def whole_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending; half-written ones have other names."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit() and (child / "state").is_dir())


def on_first_device(tree: Any) -> Any:
    """Shapes and types of `tree`, to restore it onto the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Any], ModelConfig]:
    """Loads variables (the average, if kept) and configuration of a run's best checkpoint.

    Args:
      path: a run's folder or its `checkpoints` folder: the checkpoint of the lowest validation MAE, or the last if none
        has one; or one checkpoint in it.

    Raises:
      InputError: there is no checkpoint, or it cannot be read.
    """
    chosen = _chosen(path)
    with _readable(chosen):
        tree = ocp.metadata(chosen, "state").metadata
        wanted = ("average",) if "average" in tree else ("params", "batch_stats")
        abstract = jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)
        abstract |= {name: on_first_device(tree[name]) for name in wanted}
        loaded = ocp.load_checkpointables(chosen, {"state": abstract, "run": None})
    state = loaded["state"].get("average", loaded["state"])
    variables = {name: state[name] for name in ("params", "batch_stats")}
    with named(chosen):
        return variables, ModelConfig.from_dict(loaded["run"]["config"]["model"])


def training_size(path: str | os.PathLike[str]) -> int:
    """The side in pixels of a run's training images; `path` and errors as of `load_checkpoint`."""
    chosen = _chosen(path)
    with _readable(chosen):
        return int(ocp.load_checkpointables(chosen, {"run": None})["run"]["config"]["data"]["size"])


def _chosen(path: str | os.PathLike[str]) -> Path:
    """The folder of the checkpoint that `load_checkpoint` loads. Raises InputError if there is none."""
    path = Path(path).absolute()
    if ocp.is_orbax_checkpoint(path) and (path / "state").is_dir():
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if not whole_steps(folder):
        raise InputError(f"{path}: no checkpoint in this folder")
    with _readable(folder), ocp.training.Checkpointer(folder) as checkpointer:
        found = list(checkpointer.checkpoints)
        scored = [checkpoint for checkpoint in found if (checkpoint.metrics or {}).get("mae") is not None]
        best = min(scored, key=lambda checkpoint: checkpoint.metrics["mae"]) if scored else found[-1]
        return folder / str(best.step)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Raises an InputError that names the folder for whatever is raised inside."""
    try:
        yield
    except Exception as error:  # Orbax raises many types for a damaged folder
        raise InputError(f"{folder}: not a readable checkpoint: {one_line(error)}") from error
