"""Checkpoints of a training run (Orbax).

A run's folder holds `checkpoints/<step>/`, each with `state` (parameters, BatchNorm statistics, their average if the
run keeps one, optimiser state and step: one copy, whatever the number of devices) and `run` (JSON: configuration, seed,
position in the data). Orbax writes a checkpoint beside its place and renames it when it is whole.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from purinet_jax.errors import InputError
from purinet_jax.training.step import TrainState, sharding_over
from purinet_jax.weights.runs import FOLDER, whole_steps


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
    try:
        return checkpointer.load_checkpointables(checkpointer.latest.step, {"run": None})["run"]
    except Exception as error:  # as in `restore_checkpoint`
        raise _unreadable(checkpointer, error) from error


def restore_checkpoint(
    checkpointer: ocp.training.Checkpointer, state: TrainState, devices: Sequence[jax.Device]
) -> TrainState:
    """The latest checkpoint in the place of `state`, which must be of the same network and optimiser, on `devices`.

    Raises InputError where it cannot be read.
    """
    assert checkpointer.latest is not None
    step, sharding = checkpointer.latest.step, sharding_over(devices)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _arrays(state))
    try:
        loaded = checkpointer.load_checkpointables(step, {"state": wanted})["state"]
    except Exception as error:  # Orbax raises many kinds for a damaged folder
        raise _unreadable(checkpointer, error) from error
    return state.replace(**loaded)  # type: ignore[attr-defined]


def _unreadable(checkpointer: ocp.training.Checkpointer, error: Exception) -> InputError:
    steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
    folder = checkpointer.directory / str(steps[-1])
    reason = next(iter(str(error).strip().splitlines()), repr(error))
    before = f"to go on from step {steps[-2]}" if len(steps) > 1 else "to start anew"
    return InputError(f"{folder}: not a readable checkpoint (remove the folder {before}): {reason}")
