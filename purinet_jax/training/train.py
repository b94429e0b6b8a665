"""The training loop: batches, step, checkpoints and logs, readable from top to bottom.

A run lives in one folder: `config.json`, `checkpoints/`, `log.jsonl`, `tensorboard/` and, where pairs were held out,
their names in `held_out.txt`. Started again on the same folder it goes on from the latest checkpoint with the very
batches that would have followed. In several processes (`purinet_jax.processes`) each reads its share of every batch,
and the first one writes the log.
"""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from ml_collections import ConfigDict

from purinet_jax.data import (
    Pairs,
    bad_pairs,
    check_pairs,
    evaluation_batches,
    open_pairs,
    training_batches,
)
from purinet_jax.errors import InputError
from purinet_jax.files import write_atomically
from purinet_jax.locks import only_process
from purinet_jax.memory import GrowthBound
from purinet_jax.network.inference import saliency_maps
from purinet_jax.network.model import PurNet, build_model, named_attentions, without_device_axis
from purinet_jax.processes import check_same, from_all, is_first
from purinet_jax.training import checkpoints, configurations
from purinet_jax.training.initial import initial_variables, zeros
from purinet_jax.training.losses import Losses, Objective, purnet_losses
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.reports import Profiler, RunLog
from purinet_jax.training.step import (
    AXIS,
    TrainState,
    compiled_by_all,
    create_state,
    place,
    place_batches,
    place_state,
    pmap_step,
)
from purinet_jax.training.stopping import StopRequest, failures_in_words, out_of_patience
from purinet_jax.training.watchdog import Watchdog
from purinet_jax.weights.convert import describe
from purinet_jax.weights.runs import HELD_OUT

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")


def train(
    config: ConfigDict,
    data: str | Path,
    output: str | Path,
    *,
    validation: str | Path | None = None,
    init: str | Path | None = None,
    superpixels: str | Path = "slic",
    skip_bad: bool = False,
    without_leaks: bool = False,
    losses: Losses = purnet_losses,
    partial: bool = False,
    profile: int = 0,
    progress: bool = True,
) -> TrainState:
    """Trains a network, or goes on with the run in `output`.

    Args:
      config: as `load_config` gives it.
      data: training pairs, a folder, zip or prepared set (`open_pairs`).
      output: the run's folder.
      validation: pairs on which the mean absolute error is measured every `config.loop.validate_every` steps; in
        their place `config.data.holdout` keeps that many of the training pairs out of training for it. Training ends
        early once the error has not fallen for `config.loop.patience` validations in a row (0: never).
      init: weights to start from: another run's folder or a file that `purinet convert` reads.
      superpixels: "slic", or a folder of the authors' `.mat` files; read only for the "region" term on stored ones.
      skip_bad: leave unreadable pairs out; otherwise they are all named and nothing is trained.
      without_leaks: leave copies of test images and second copies of images out (`Pairs.without_leaks`).
      losses: what is minimised; a function of one's own in the place of `purnet_losses` (`Losses` says of what). The
        run's folder does not hold it: give the same one to go on.
      partial: of `init` take the tensors that fit the configured network, and name in the log what does not.
      profile: so many steps, after the first two, are traced into `profile/`, for TensorBoard and Perfetto.
      progress: show progress bars.

    Returns:
      The state after the last step, or after the step in which SIGTERM or SIGINT arrived (it is saved then too).

    Raises:
      InputError: data, configuration, weights or folder cannot be used.
      NonFiniteLoss: a loss or gradient was NaN or Inf; checkpoints hold only states from before it.
      RunEnded: what it runs on failed; the last checkpoint is whole.
    """
    # Everything that can be wrong with what the user gave is found before the first file is written.
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: not a folder")
    _check_config(config)
    objective = _settings(Objective, config.losses, "losses")
    devices = jax.devices()
    _check_batch(config, len(devices))
    model = build_model(config.model, axis_name=AXIS, dtype=jnp.dtype(config.dtype), remat=config.loop.remat)
    optimizer = make_optimizer(_settings(OptimizerConfig, config.optimizer, "optimizer"), config.steps)
    _check_resumable(config, output)
    stored = objective.structural == "region" and objective.superpixels == "stored"
    if superpixels != "slic" and not stored:
        raise InputError(
            f"--superpixels {superpixels}: not read with losses.structural {objective.structural!r} and "
            f"losses.superpixels {objective.superpixels!r}"
        )
    regions = superpixels if stored else None
    pairs = open_pairs(data, superpixels=regions, superpixel_fallback=output / "superpixels")
    if without_leaks:
        complete, pairs = len(pairs), pairs.without_leaks()
        logger.info("left out %d of %d pairs: copies of test images, second copies", complete - len(pairs), complete)
    if validation is not None and config.data.holdout:
        raise InputError(f"{validation}: config.data.holdout = {config.data.holdout} already names what to validate on")
    if config.loop.patience and validation is None and not config.data.holdout:
        raise InputError(f"config.loop.patience: {config.loop.patience}, but there are no pairs to validate on")
    validation_pairs = None if validation is None else open_pairs(validation)
    resuming = checkpoints.has_checkpoint(output)
    several = jax.process_count() > 1
    if several:  # each reads its own copy of what all must have the same
        check_same(
            {
                "the configuration": json.dumps(config.to_dict(), sort_keys=True),
                str(data): pairs.fingerprint,
                f"{output}: its checkpoints": str(resuming),
            }
        )
    if resuming:
        variables = zeros(config)
    else:
        # Files that were read whole before the first step need not be read again to go on.
        (bad,) = bad_pairs([pairs], skip_bad, progress)
        if config.data.holdout:
            pairs.subset(range(len(pairs) - len(bad))).hold_out(config.data.holdout, config.seed)
        variables = initial_variables(config, init, partial)
    if several:
        drawn_or_read = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(variables))
        check_same({"the variables before the first step": drawn_or_read})

    stop = StopRequest()
    first = is_first()
    with (
        failures_in_words(output) as doing,
        Watchdog(config.loop.timeout) as watchdog,
        only_process(output, "training in this folder") if first else contextlib.nullcontext(),
        stop,
        checkpoints.open_checkpoints(output, config.loop.keep) as checkpointer,
    ):
        state = create_state(
            model,
            variables,
            optimizer,
            objective,
            config.accumulate,
            config.average_decay,
            losses,
            config.freeze_statistics,
        )
        if resuming:
            run = checkpoints.read_run(checkpointer)
            if run["data"] != pairs.fingerprint:
                raise InputError(f"{data}: not the data set that the run in {output} was started with")
            state = checkpoints.restore_checkpoint(checkpointer, state, devices)
            logger.info("going on from step %d of %s", int(state.step), output)
        else:
            run = {"config": config.to_dict(), "data": pairs.fingerprint, "bad": bad}
            if first:
                write_atomically(output / "config.json", (json.dumps(config.to_dict(), indent=2) + "\n").encode())
            logger.info("%s, %s parameters", describe(config.model), f"{_count(state.params):,}")
        pairs = pairs.subset(sorted(set(range(len(pairs))) - set(run["bad"])))
        if config.data.holdout:
            pairs, validation_pairs = pairs.hold_out(config.data.holdout, config.seed)
            if first:
                write_atomically(output / HELD_OUT, "".join(f"{name}\n" for name in validation_pairs.names).encode())
        # Step and error of every validation so far; runs of earlier versions kept none.
        validated: list[list[float]] = run.get("validated", [])
        start = int(state.step)
        end = start if out_of_patience(validated, config.loop.patience) else config.steps
        state = place_state(state, devices)
        step = compiled_by_all(pmap_step(devices))
        batches = training_batches(
            pairs,
            batch_size=config.batch_size // jax.process_count(),
            size=config.data.size,
            seed=config.seed,
            start=start,
            workers=config.loop.workers,
            flip=config.data.flip,
            rotate=config.data.rotate,
            crop=config.data.crop,
            jitter=config.data.jitter,
            sizes=config.data.sizes,
            max_regions=objective.max_regions,
            shard=jax.process_index(),
            shards=jax.process_count(),
        )
        saved = start if resuming else None
        profiler = Profiler(output / "profile", start + 2, profile if first else 0)
        growth = GrowthBound()
        with batches, profiler, RunLog(output if first else None, config, model, start, progress) as log:
            placed = place_batches(batches, devices)
            if config.loop.validate_first and validation_pairs is not None and not start and not validated:
                at_first = _validate(state, validation_pairs, config, log, watchdog, validated)
                checkpoints.save_checkpoint(checkpointer, state, {**run, "validated": [*validated]}, at_first)
                saved = 0
            for number in range(start, end):
                done = number + 1
                doing(f"step {done}")
                watchdog.stage(f"step {done}: reading its batch")
                index, batch = next(placed)
                watchdog.stage(f"step {done}: taking it on {len(devices)} devices", compiles=number == start)
                names = [pairs.names[i] for i in index]
                profiler.before(number, state)
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, metrics = step(state, batch)
                # The step runs on while the one before it is read: the loop never waits for what it just started.
                log.metrics(done, metrics, names, batch["image"].shape[-2])
                stopping = stop.after(done)
                due = done % config.loop.checkpoint_every == 0 or done == config.steps or stopping
                validate = validation_pairs is not None and (
                    done % config.loop.validate_every == 0 or done == config.steps
                )
                if first and config.loop.panel_every and done % config.loop.panel_every == 0:
                    watchdog.stage(f"step {done}: drawing maps", compiles=True)
                    log.panel(done, state, batch)
                if due or validate:
                    log.flush()  # raises for NaN before the state it made is saved
                    growth.check()
                    mae = None
                    if validate:
                        mae = _validate(state, validation_pairs, config, log, watchdog, validated)
                    doing(f"step {done}: saving")
                    watchdog.stage(f"step {done}: saving it")
                    checkpoints.save_checkpoint(checkpointer, state, {**run, "validated": [*validated]}, mae)
                    saved = done
                if stopping or (validate and out_of_patience(validated, config.loop.patience)):
                    break
            log.flush()
        doing("saving")
        watchdog.stage("saving the last checkpoint")
        checkpointer.wait()
        if saved is not None:
            logger.info("saved step %d in %s", saved, output)
        if int(state.step) < config.steps and out_of_patience(validated, config.loop.patience):
            best, mae = min(validated, key=lambda entry: entry[1])
            logger.info("ended early: the validation MAE has not fallen below the %.4f of step %d", mae, best)
    return state


def _bad_pairs(pairs: Pairs, skip_bad: bool, progress: bool) -> list[int]:
    """`bad_pairs` of one data set, each process parsing its share of the files."""
    if jax.process_count() == 1:
        (bad,) = bad_pairs([pairs], skip_bad, progress)
        return bad
    share = range(jax.process_index(), len(pairs), jax.process_count())
    found = np.zeros(len(pairs), bool)
    for position, reason in check_pairs(pairs.subset(share), progress=progress and is_first()):
        logger.warning("%s", reason)
        found[share[position]] = True
    bad = np.flatnonzero(from_all(found).any(0)).tolist()
    if bad and not skip_bad:
        raise InputError(f"{len(bad)} of {len(pairs)} pairs cannot be used (named above); --skip-bad leaves them out")
    if len(bad) == len(pairs):
        raise InputError(f"{pairs.path}: none of {len(pairs)} pairs can be used")
    return bad


def _check_config(config: ConfigDict) -> None:
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"config.dtype: {config.dtype!r} is neither float32 nor bfloat16")
    positive = {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "data.size": config.data.size,
        **{f"loop.{key}": config.loop[key] for key in ("log_every", "checkpoint_every", "validate_every", "keep")},
    }
    for key, value in positive.items():
        if value < 1:
            raise InputError(f"config.{key}: {value} is not at least 1")
    if config.loop.patience < 0:
        raise InputError(f"config.loop.patience: {config.loop.patience} is below 0")


def _settings(kind: type[Settings], values: ConfigDict, key: str) -> Settings:
    """The dataclass of a part of the configuration."""
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
    if unknown:
        raise InputError(f"config.{key}.{unknown[0]}: no such setting")
    return kind(**values)


def _check_batch(config: ConfigDict, devices: int) -> None:
    if config.batch_size % (devices * config.accumulate):
        parts = f"{devices} devices" + (f" × {config.accumulate} parts" if config.accumulate > 1 else "")
        raise InputError(f"config.batch_size: {config.batch_size} is not divisible by {parts}")


def _check_resumable(config: ConfigDict, output: Path) -> None:
    """The run in `output`, if there is one, was started with the same configuration; how often it logs may differ."""
    saved = output / "config.json"
    if not saved.exists():
        return
    base = configurations.load_config(str(configurations.FOLDER / "base.py"))
    ours, theirs, default = (
        traverse_util.flatten_dict(json.loads(text), sep=".")
        for text in (json.dumps(config.to_dict()), saved.read_text(), json.dumps(base.to_dict()))
    )
    # A run of a version that did not know a setting yet had what is the default now.
    theirs = {key: default[key] for key in ours.keys() & default.keys()} | theirs
    if "model.attention" in theirs:
        theirs["model.attention"] = [*named_attentions(theirs["model.attention"])]
    for key in sorted(ours | theirs):
        if not key.startswith("loop.") and ours.get(key) != theirs.get(key):
            raise InputError(
                f"config.{key}: {ours.get(key)!r}, but the run in {output} was started with {theirs.get(key)!r}"
            )


def _count(params: Any) -> int:
    from clu import parameter_overview

    return parameter_overview.count_parameters(params)


@jax.jit(static_argnums=0)
def _absolute_errors(model: PurNet, variables: Any, images: Array, masks: Array) -> Array:
    """Mean absolute error of the level-1 map of each image, [batch]."""
    return jnp.abs(saliency_maps(model, variables, images) - masks[..., 0]).mean((1, 2))


def _validate(
    state: TrainState,
    pairs: Pairs | None,
    config: ConfigDict,
    log: "RunLog",
    watchdog: Watchdog,
    validated: list[list[float]],
) -> float:
    """Mean absolute error in [0, 1] over `pairs`, at the size of training, each process taking its share of them; noted
    with its step in `validated`."""
    from tqdm import tqdm

    assert pairs is not None
    step, processes, devices = int(state.step), jax.process_count(), jax.local_devices()
    share = pairs.subset(range(jax.process_index(), len(pairs), processes))
    batch_size = config.batch_size // processes
    model = without_device_axis(state.model)
    variables = place(jax.device_get(state.variables), devices)
    total, count = 0.0, 0
    if len(share):
        batches = evaluation_batches(share, batch_size=batch_size, size=config.data.size, workers=config.loop.workers)
        number = -(-len(share) // batch_size)
        with batches:
            for batch in tqdm(batches, "validation", number, leave=False, unit="batch", disable=not log.progress):
                watchdog.stage(f"step {step}: validation", compiles=count == 0)
                images, masks = place((batch["image"], batch["mask"]), devices, split=True)
                errors = np.asarray(_absolute_errors(model, variables, images, masks), np.float64)
                total, count = total + float(errors[batch["valid"]].sum()), count + int(batch["valid"].sum())
    total, count = from_all(np.array([total, count], np.float32)).sum(0).tolist()
    mae = total / count
    validated.append([step, mae])
    log.scalars(step, {"validation/mae": mae})
    return mae
