"""Checkpoints of a training run (Orbax).

A run's folder holds `checkpoints/<step>/`, each with `state` (one copy, for any number of devices) and `run`
(`RunRecord` as JSON). Orbax writes a checkpoint under a temporary name and renames it when it is complete.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from purinet_jax.errors import InputError
from purinet_jax.files import one_line
from purinet_jax.training.step import TrainState, sharding_over
from purinet_jax.weights.runs import FOLDER, whole_steps


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a checkpoint keeps next to the state.

    Attributes:
      config: the run's configuration.
      data: the fingerprint of its data set (`Pairs.fingerprint`).
      bad: the indices of the pairs that are left out because they cannot be read.
      validated: step and error of every validation so far.
    """

    config: dict[str, Any]
    data: str
    bad: list[int]
    validated: list[list[float]] = dataclasses.field(default_factory=list)


def open_checkpoints(run: Path, keep: int) -> ocp.training.Checkpointer:
    """Opens the checkpoints of a run, a context manager that keeps the last `keep` and the best by validation MAE.

    Incomplete checkpoints of a killed run are removed.
    """
    policies = ocp.training.preservation_policies
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics["mae"], reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    return ocp.training.Checkpointer(
        (run / FOLDER).absolute(),
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        cleanup_tmp_directories=True,
    )


def _arrays(state: TrainState) -> dict[str, Any]:
    names = ("step", "params", "batch_stats", "optimizer_state", "average")
    return {name: getattr(state, name) for name in names if getattr(state, name) is not None}


def save_checkpoint(
    checkpointer: ocp.training.Checkpointer, state: TrainState, record: RunRecord, mae: float | None
) -> None:
    """Begins to save `state` under its step; returns once the arrays are copied, and files follow in the background.

    Args:
      checkpointer: from `open_checkpoints`.
      state: may be donated as soon as this returns.
      record: stored with it.
      mae: the validation error in [0, 1] that decides which checkpoint is the best, if it was measured.
    """
    checkpointer.save_checkpointables_async(
        int(state.step),
        {"state": _arrays(state), "run": dataclasses.asdict(record)},
        metrics=None if mae is None else {"mae": mae},
        overwrite=True,
    )


def has_checkpoint(run: Path) -> bool:
    """Returns whether a run's folder has a complete checkpoint."""
    return bool(whole_steps(run / FOLDER))


def read_record(run: Path) -> RunRecord:
    """Reads the `RunRecord` of a run's latest checkpoint.

    Raises:
      InputError: it cannot be read.
    """
    stored = _load(run, {"run": None})["run"]
    return RunRecord(
        **{field.name: stored[field.name] for field in dataclasses.fields(RunRecord) if field.name in stored}
    )


def restore_checkpoint(run: Path, state: TrainState, devices: Sequence[jax.Device]) -> TrainState:
    """Returns `state` with the arrays of a run's latest checkpoint, of the same network and optimiser, on `devices`.

    Raises:
      InputError: it cannot be read.
    """
    sharding = sharding_over(devices)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _arrays(state))
    return state.replace(**_load(run, {"state": wanted})["state"])  # type: ignore[attr-defined]


def _load(run: Path, wanted: dict[str, Any]) -> Any:
    *earlier, step = whole_steps(run / FOLDER)
    folder = (run / FOLDER / str(step)).absolute()
    try:
        return ocp.load_checkpointables(folder, wanted)
    except Exception as error:  # Orbax raises many types for a damaged folder
        remedy = f"go on from step {earlier[-1]}" if earlier else "start from scratch"
        raise InputError(
            f"{folder}: not a readable checkpoint (if damaged, remove the folder to {remedy}; if of another version, "
            f"start a new run with --init {run}): {one_line(error)}"
        ) from error
