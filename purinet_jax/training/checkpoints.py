"""Checkpoints of a training run (Orbax).

A run's folder holds `checkpoints/<step>/`, each with `state` (parameters, BatchNorm statistics, their average if the
run keeps one, optimiser state and step: one copy, whatever the number of devices) and `run` (JSON: configuration, seed,
position in the data). Orbax writes a checkpoint beside its place and renames it when it is whole.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from purinet_jax.errors import InputError
from purinet_jax.training.step import TrainState

FOLDER = "checkpoints"


def open_checkpoints(run: Path, keep: int) -> ocp.training.Checkpointer:
    """The checkpoints of a run: the last `keep` are kept, and the best by validation MAE.

    Half-written checkpoints of a killed run are removed. Close it, or use it as a context manager.
    """
    policies = ocp.training.preservation_policies
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics["mae"],
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    return ocp.training.Checkpointer(
        (run / FOLDER).absolute(),
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        cleanup_tmp_directories=True,
    )


def _arrays(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "optimizer_state": state.optimizer_state,
        **({} if state.average is None else {"average": state.average}),
    }


def _abstract(tree: Any) -> Any:
    """Shapes and types of `tree`, to be restored onto the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def save_checkpoint(
    checkpointer: ocp.training.Checkpointer, state: TrainState, run: dict[str, Any], mae: float | None
) -> None:
    """Begins to save `state` under its step; returns once the arrays are copied, the files follow in the background.

    Args:
      checkpointer: from `open_checkpoints`.
      state: may be donated as soon as this returns.
      run: JSON values stored with it.
      mae: the validation error in [0, 1] that decides which checkpoint is the best, if it was measured.
    """
    checkpointer.save_checkpointables_async(
        int(state.step),
        {"state": _arrays(state), "run": run},
        metrics=None if mae is None else {"mae": mae},
        overwrite=True,
    )


def has_checkpoint(run: Path) -> bool:
    """Whether there is a whole checkpoint in a run's folder."""
    return bool(_steps(run / FOLDER))


def _steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, ascending; half-written ones have other names."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit() and (child / "state").is_dir())


def read_run(checkpointer: ocp.training.Checkpointer) -> dict[str, Any]:
    """The `run` values of the latest checkpoint."""
    assert checkpointer.latest is not None
    return checkpointer.load_checkpointables(checkpointer.latest.step, {"run": None})["run"]


def restore_checkpoint(checkpointer: ocp.training.Checkpointer, state: TrainState) -> TrainState:
    """The latest checkpoint in the place of `state`, which must be of the same network and optimiser."""
    assert checkpointer.latest is not None
    step = checkpointer.latest.step
    loaded = checkpointer.load_checkpointables(step, {"state": _abstract(_arrays(state))})["state"]
    return state.replace(**loaded)  # type: ignore[attr-defined]


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
        if not _steps(folder):
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
        abstract |= {name: _abstract(tree[name]) for name in wanted}
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
