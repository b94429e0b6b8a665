"""Checkpoints of a training run (Orbax).

A run's folder holds `checkpoints/<step>/`, each with `state` (parameters, BatchNorm statistics, their average if the
run keeps one, optimiser state and step: one copy, whatever the number of devices) and `run` (JSON: configuration, seed,
position in the data). Orbax writes a checkpoint beside its place and renames it when it is whole.
"""

from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from purinet_jax.training.step import TrainState
from purinet_jax.weights.runs import FOLDER, on_first_device, whole_steps


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
    return bool(whole_steps(run / FOLDER))


def read_run(checkpointer: ocp.training.Checkpointer) -> dict[str, Any]:
    """The `run` values of the latest checkpoint."""
    assert checkpointer.latest is not None
    return checkpointer.load_checkpointables(checkpointer.latest.step, {"run": None})["run"]


def restore_checkpoint(checkpointer: ocp.training.Checkpointer, state: TrainState) -> TrainState:
    """The latest checkpoint in the place of `state`, which must be of the same network and optimiser."""
    assert checkpointer.latest is not None
    step = checkpointer.latest.step
    loaded = checkpointer.load_checkpointables(step, {"state": on_first_device(_arrays(state))})["state"]
    return state.replace(**loaded)  # type: ignore[attr-defined]
