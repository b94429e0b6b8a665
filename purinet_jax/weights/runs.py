"""What a training run leaves to whoever loads its network: its folder holds `checkpoints/<step>/` (Orbax), each with
`state` (among others parameters, BatchNorm statistics and, if the run keeps one, their average) and `run` (JSON, with
the model's configuration). `purinet_jax.training.checkpoints` writes them.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from purinet_jax.errors import InputError

FOLDER = "checkpoints"
"""Where a run's folder has its checkpoints."""

HELD_OUT = "held_out.txt"
"""Where it has the names of the pairs that were held out, a line each, if some were."""


def whole_steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, ascending; half-written ones have other names."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit() and (child / "state").is_dir())


def on_first_device(tree: Any) -> Any:
    """Shapes and types of `tree`, to be restored onto the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and model configuration of a run's best checkpoint by validation MAE (its last where none has one).

    Where the run keeps an average of its variables, that is what is given.

    Args:
      path: a run's folder, its `checkpoints` folder, or one checkpoint in it (that one is taken then).

    Raises:
      InputError: no checkpoint there.
    """
    path = Path(path).absolute()
    chosen = path if ocp.is_orbax_checkpoint(path) and (path / "state").is_dir() else None
    if chosen is None:
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        if not whole_steps(folder):
            raise InputError(f"{path}: no checkpoint in this folder")
        with ocp.training.Checkpointer(folder) as checkpointer:
            found = list(checkpointer.checkpoints)
            scored = [checkpoint for checkpoint in found if (checkpoint.metrics or {}).get("mae") is not None]
            best = min(scored, key=lambda checkpoint: checkpoint.metrics["mae"]) if scored else found[-1]
            chosen = folder / str(best.step)
    try:
        tree = ocp.metadata(chosen, "state").metadata
        wanted = ("average",) if "average" in tree else ("params", "batch_stats")
        abstract = jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)
        abstract |= {name: on_first_device(tree[name]) for name in wanted}
        loaded = ocp.load_checkpointables(chosen, {"state": abstract, "run": None})
    except Exception as error:  # Orbax raises many kinds for a damaged folder
        reason = str(error).strip().splitlines()
        raise InputError(f"{chosen}: not a readable checkpoint: {reason[0] if reason else error!r}") from error
    state = loaded["state"].get("average", loaded["state"])
    variables = {name: state[name] for name in ("params", "batch_stats")}
    return variables, loaded["run"]["config"]["model"]


def training_size(path: str | os.PathLike[str]) -> int | None:
    """The side in pixels of the images that the run in a folder (as `load_checkpoint` takes it) was trained on."""
    path = Path(path).absolute()
    for folder in (path, *path.parents[:2]):
        if (folder / "config.json").is_file() and (folder / FOLDER).is_dir():
            return json.loads((folder / "config.json").read_text())["data"]["size"]
    return None
