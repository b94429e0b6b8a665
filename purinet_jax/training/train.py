"""The training loop: batches, step, checkpoints and logs, readable from top to bottom.

A run has one folder: `config.json`, `checkpoints/`, `log.jsonl`, `tensorboard/` and, if pairs are held out, their names
in `held_out.txt`. Started again on the same folder it goes on from the latest checkpoint with the batches that would
have followed. In several processes (`purinet_jax.processes`) each reads its share of every batch, and the first one
writes the log.
"""

import contextlib
import dataclasses
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from flax import traverse_util
from jax import Array
from ml_collections import ConfigDict

from purinet_jax.data import Pairs, bad_pairs, evaluation_batches, open_pairs, training_batches
from purinet_jax.data.pipeline import Batches, check_augmentation
from purinet_jax.errors import InputError, escaped
from purinet_jax.files import check_output_folder, write_atomically
from purinet_jax.locks import only_process
from purinet_jax.memory import GrowthBound
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.inference import saliency_maps
from purinet_jax.network.model import PurNet
from purinet_jax.processes import check_same, from_all, is_first
from purinet_jax.progress import progress_bar
from purinet_jax.training import checkpoints
from purinet_jax.training.checkpoints import RunRecord
from purinet_jax.training.configurations import base_config
from purinet_jax.training.initial import initial_variables, shapes_of
from purinet_jax.training.losses import SSIM_WINDOW, Losses, Objective, purnet_losses
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.reports import Profiler, RunLog
from purinet_jax.training.step import (
    AXIS,
    TrainState,
    Variables,
    compiled_by_all,
    create_state,
    place,
    place_batches,
    place_state,
    pmap_step,
)
from purinet_jax.training.stopping import StopRequest, failures_in_words, out_of_patience
from purinet_jax.training.watchdog import Watchdog
from purinet_jax.weights.runs import HELD_OUT

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")

# A larger one is a slip, and drawing it would take for ever.
_LARGEST_BATCH = 1 << 16

# The settings of `config.data` that `training_batches` takes.
_AUGMENTATION = ("size", "flip", "rotate", "crop", "jitter", "sizes")


def train(
    config: ConfigDict,
    data: str | Path | Pairs,
    output: str | Path,
    *,
    validation: str | Path | None = None,
    init: str | Path | None = None,
    superpixels: str | Path | None = None,
    skip_bad: bool = False,
    without_leaks: bool = False,
    object_labels: Sequence[int] = (),
    losses: Losses = purnet_losses,
    partial: bool = False,
    profile: int = 0,
    progress: bool = True,
) -> TrainState:
    """Trains a network, or goes on with the run in `output`.

    Args:
      config: as `load_config` gives it.
      data: training pairs, a folder, archive or prepared set (`open_pairs`), or opened ones, with their superpixels and
        labels.
      output: the run's folder.
      validation: pairs on which the mean absolute error is measured every `config.loop.validate_every` steps;
        `config.data.holdout` keeps that many of the training pairs for it instead. Training ends early once the error
        has not fallen for `config.loop.patience` validations in a row (0: never).
      init: weights to start from: another run's folder, a file that `purinet convert` reads, "context" or "lite".
      superpixels: a folder of the authors' `.mat` files, for `config.losses.superpixels` = "files".
      skip_bad: leave unreadable pairs out; otherwise all of them are named and nothing is trained.
      without_leaks: leave copies of test images and second copies of images out (`Pairs.without_leaks`).
      object_labels: as of `open_pairs`, for pairs that are not opened yet, training and validation.
      losses: what is minimised, in place of `purnet_losses`. The run's folder does not hold it: pass it to go on, too.
      partial: take from `init` the tensors that fit the configured network, and name the others in the log.
      profile: how many steps, after the first two, are traced into `profile/`, for TensorBoard and Perfetto.
      progress: show progress bars.

    Returns:
      The state after the last step, or after the step in which SIGTERM or SIGINT arrived (it is saved then, too).

    Raises:
      InputError: data, configuration, weights or folder cannot be used.
      NonFiniteLoss: a loss or gradient was NaN or Inf; checkpoints hold only states from before it.
      RunEnded: the disk, memory, a device or another process failed; the last checkpoint is complete.
    """
    output, devices, first = Path(output), jax.devices(), is_first()
    watchdog = Watchdog(config.loop.timeout)
    lock = only_process(output, "training in this folder") if first else contextlib.nullcontext()
    with failures_in_words(output, watchdog), contextlib.ExitStack() as stack:
        # A new folder is made, and locked, only once everything that the user gave has been checked.
        resuming = checkpoints.has_checkpoint(output)
        if resuming:
            stack.enter_context(lock)
        if first:
            check_output_folder(output)
        _check_config(config, validation)
        if isinstance(data, Pairs) and superpixels is not None:
            raise InputError(f"{data.path}: superpixels are given to open_pairs, which has opened these pairs")
        objective = _objective(config, superpixels, data.superpixels is not None if isinstance(data, Pairs) else False)
        model_config = ModelConfig.from_dict(config.model)
        model = model_config.build(axis_name=AXIS, dtype=jnp.dtype(config.dtype), remat=config.loop.remat)
        optimizer = make_optimizer(_settings(OptimizerConfig, config.optimizer, "optimizer"), config.steps)
        # Each process reads its own copies.
        settings = json.dumps(config.to_dict(), sort_keys=True)
        check_same({"the configuration": settings, f"{output}: its checkpoints": str(resuming)})
        saved = checkpoints.read_record(output) if resuming else None
        if saved is not None:
            _check_resumable(config, saved.config, output)
        elif first:
            _check_replaceable(output / "config.json")
        pairs = data
        if not isinstance(pairs, Pairs):
            pairs = open_pairs(pairs, superpixels=superpixels, object_labels=object_labels)
        if without_leaks:
            complete, pairs = len(pairs), pairs.without_leaks()
            left_out = complete - len(pairs)
            logger.info("left out %d of %d pairs: copies of test images, second copies", left_out, complete)
        validation_pairs = None if validation is None else open_pairs(validation, object_labels=object_labels)
        sets = [pairs] if validation_pairs is None else [pairs, validation_pairs]
        fingerprint, *others = (each.fingerprint for each in sets)
        check_same({str(pairs.path): fingerprint, "the pairs to validate on": str(others)})
        if saved is not None and saved.data != fingerprint:
            raise InputError(f"{pairs.path}: not the data set that the run in {output} was started with")
        # Pairs to train on are checked once, those to validate on, which may be others when a run goes on, each time.
        unchecked = sets if saved is None else sets[1:]
        share = slice(jax.process_index(), None, jax.process_count())
        bad = bad_pairs(
            unchecked,
            skip_bad,
            progress and first,
            max_regions=objective.max_regions,
            share=share,
            gather=from_all,
        )
        if validation_pairs is not None:
            validation_pairs = validation_pairs.without(bad.pop())
        record = saved or RunRecord(config.to_dict(), fingerprint, bad[0])
        pairs = pairs.without(record.bad)
        if config.data.holdout:
            pairs, validation_pairs = pairs.hold_out(config.data.holdout, config.seed)

        def create(variables: Variables) -> TrainState:
            settings = (config.accumulate, config.average_decay, losses, config.freeze_statistics)
            return create_state(model, variables, optimizer, objective, *settings)

        if resuming:
            state = checkpoints.restore_checkpoint(output, jax.eval_shape(create, shapes_of(config)), devices)
            logger.info("going on from step %d of %s", int(state.step), output)
        else:
            state = create(initial_variables(config, init, partial))
            stack.enter_context(lock)
            if first and checkpoints.has_checkpoint(output):
                raise InputError(f"{output}: another process has meanwhile trained in this folder")
            parameters = parameter_overview.count_parameters(state.params)
            logger.info("%s, %s parameters", model_config.describe(), f"{parameters:,}")
            if first:
                write_atomically(output / "config.json", (json.dumps(config.to_dict(), indent=2) + "\n").encode())
        if first and config.data.holdout and validation_pairs is not None:
            names = "".join(f"{escaped(name)}\n" for name in validation_pairs.names)
            write_atomically(output / HELD_OUT, names.encode("utf-8", "surrogateescape"))
        start = int(state.step)

        stack.enter_context(watchdog)
        stop = stack.enter_context(StopRequest())
        checkpointer = stack.enter_context(checkpoints.open_checkpoints(output, config.loop.keep))
        batches = stack.enter_context(_batches(config, pairs, objective, start))
        profiler = stack.enter_context(Profiler(output / "profile", start + 3, profile if first else 0))
        log = stack.enter_context(RunLog(output if first else None, config, model, start, progress))
        growth = GrowthBound()
        state, update = place_state(state, devices), compiled_by_all(pmap_step(devices))

        def validate(step: int) -> float:
            assert validation_pairs is not None
            mae = validation_error(state, validation_pairs, config, watchdog, log.progress)
            record.validated.append([step, mae])
            log.validation(step, mae)
            return mae

        if config.loop.validate_first and validation_pairs is not None and not start and not record.validated:
            checkpoints.save_checkpoint(checkpointer, state, record, validate(0))
        placed = place_batches(batches, devices)
        compiled: set[int] = set()  # sides of images
        last = start if out_of_patience(record.validated, config.loop.patience) else config.steps
        for step in range(start + 1, last + 1):
            watchdog.enter(f"step {step}: reading the batch")
            indices, batch = next(placed)
            side = batch["image"].shape[-2]
            watchdog.enter(f"step {step}: computing on {len(devices)} devices", compiles=side not in compiled)
            compiled.add(side)
            profiler.before(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = update(state, batch)
            # Metrics are reported one step late, so that the loop does not wait for the step that it has just started.
            log.metrics(step, metrics, [pairs.names[i] for i in indices], side)
            if first and config.loop.panel_every and step % config.loop.panel_every == 0:
                watchdog.enter(f"step {step}: drawing maps", compiles=True)
                log.panel(step, state, batch)
            ending = stop.after(step) or step == config.steps
            validating = validation_pairs is not None and (
                step == config.steps or step % config.loop.validate_every == 0
            )
            if ending or validating or step % config.loop.checkpoint_every == 0:
                log.flush()  # raises for NaN before the state that it made is saved
                growth.check()
                mae = validate(step) if validating else None
                watchdog.enter(f"step {step}: saving")
                checkpoints.save_checkpoint(checkpointer, state, record, mae)
            if ending or out_of_patience(record.validated, config.loop.patience):
                break
        watchdog.enter("saving the last checkpoint")
        checkpointer.wait()
    logger.info("saved step %d in %s", int(state.step), output)
    if int(state.step) < config.steps and out_of_patience(record.validated, config.loop.patience):
        best, mae = min(record.validated, key=lambda entry: entry[1])
        logger.info("ended early: the validation MAE has not fallen below the %.4f of step %d", mae, best)
    return state


def _check_config(config: ConfigDict, validation: str | Path | None) -> None:
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"config.dtype: {config.dtype!r} is neither float32 nor bfloat16")
    positive = {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        **{f"loop.{key}": config.loop[key] for key in ("log_every", "checkpoint_every", "validate_every", "keep")},
    }
    for key, value in positive.items():
        if value < 1:
            raise InputError(f"config.{key}: {value} is not at least 1")
    try:
        check_augmentation(config.seed, **{key: config.data[key] for key in _AUGMENTATION})
    except InputError as error:
        raise InputError(f"config.{'' if str(error).startswith('seed') else 'data.'}{error}") from error
    key, sides = ("sizes", config.data.sizes) if config.data.sizes else ("size", (config.data.size,))
    if config.losses.structural == "ssim" and min(sides) < SSIM_WINDOW:
        raise InputError(f"config.data.{key}: {min(sides)} is less than the {SSIM_WINDOW} of a window of SSIM")
    at_least_0 = {
        "average_decay": config.average_decay,
        "data.holdout": config.data.holdout,
        **{f"loop.{key}": config.loop[key] for key in ("panel_every", "patience", "timeout", "workers")},
    }
    for key, value in at_least_0.items():
        if not 0 <= value < math.inf:
            raise InputError(f"config.{key}: {value} is not a number of at least 0")
    if config.batch_size > _LARGEST_BATCH:
        raise InputError(f"config.batch_size: {config.batch_size} is more than {_LARGEST_BATCH}")
    if config.average_decay >= 1:
        raise InputError(f"config.average_decay: {config.average_decay} is not below 1")
    devices = len(jax.devices())
    if config.batch_size % (devices * config.accumulate):
        parts = f"{devices} devices" + (f" × {config.accumulate} parts" if config.accumulate > 1 else "")
        raise InputError(f"config.batch_size: {config.batch_size} is not divisible by {parts}")
    if validation is not None and config.data.holdout:
        raise InputError(f"{validation}: config.data.holdout = {config.data.holdout} already names what to validate on")
    if config.loop.patience and validation is None and not config.data.holdout:
        raise InputError(f"config.loop.patience: {config.loop.patience}, but there are no pairs to validate on")


def _objective(config: ConfigDict, superpixels: str | Path | None, have_superpixels: bool = False) -> Objective:
    """The configured losses; raises InputError if they need superpixels and there are none, or the folder
    `superpixels` is not read. Opened pairs may have superpixels that are not read."""
    objective = _settings(Objective, config.losses, "losses")
    read = objective.structural == "region" and objective.superpixels == "files"
    if read and superpixels is None and not have_superpixels:
        raise InputError(
            "config.losses.superpixels: 'files' needs --superpixels DIR, a folder of the authors' .mat files"
        )
    if superpixels is not None and not read:
        raise InputError(
            f"--superpixels {superpixels}: not read with losses.structural {objective.structural!r} and "
            f"losses.superpixels {objective.superpixels!r}"
        )
    return objective


def _settings(kind: type[Settings], values: ConfigDict, key: str) -> Settings:
    """The dataclass of a part of the configuration."""
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
    if unknown:
        raise InputError(f"config.{key}.{unknown[0]}: no such setting")
    return kind(**values)


def _check_replaceable(file: Path) -> None:
    """Raises InputError if there is a file that is not the `config.json` of a run, such as another program's."""
    try:
        known = not file.exists() or json.loads(file.read_bytes()).keys() >= {"model", "losses", "loop"}
    except (ValueError, AttributeError, RecursionError):
        known = False
    if not known:
        raise InputError(f"{file}: belongs to another program; name another folder for the run")


def _check_resumable(config: ConfigDict, saved: Mapping[str, Any], output: Path) -> None:
    """Raises InputError if the run in `output` was started with other settings, `saved`, than these, `loop` apart."""
    trees = [config.to_dict(), dict(saved), base_config().to_dict()]
    for tree in trees:
        tree["model"] = ModelConfig.from_dict(tree["model"]).to_dict()
    ours, theirs, default = (traverse_util.flatten_dict(json.loads(json.dumps(tree)), sep=".") for tree in trees)
    # A run of a version that did not have a setting yet had what is the default now.
    theirs = {key: default[key] for key in ours.keys() & default.keys()} | theirs
    if theirs.get("losses.structural") != "region":  # then the default, which was another one in 0.2, has no effect
        theirs["losses.superpixels"] = ours.get("losses.superpixels")
    elif theirs.get("losses.superpixels") == "stored":
        theirs["losses.superpixels"] = "files"
        if ours.get("losses.superpixels") != "files":
            raise InputError(
                f"{output}: a run of version 0.2 with stored superpixels, which goes on with the authors' .mat files "
                "(--config.losses.superpixels=files --superpixels DIR) or is the --init of a new run"
            )
    # Earlier versions kept settings that none of their code read.
    for key in sorted(ours | default):
        if not key.startswith("loop.") and ours.get(key) != theirs.get(key):
            raise InputError(
                f"config.{key}: {ours.get(key)!r}, but the run in {output} was started with {theirs.get(key)!r}"
            )


def _batches(config: ConfigDict, pairs: Pairs, objective: Objective, start: int) -> Batches:
    """This process's share of the training batches from step `start` on."""
    return training_batches(
        pairs,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        start=start,
        workers=config.loop.workers,
        max_regions=objective.max_regions,
        shard=jax.process_index(),
        shards=jax.process_count(),
        **{key: config.data[key] for key in _AUGMENTATION},
    )


@jax.jit(static_argnums=0)
def _absolute_errors(model: PurNet, variables: Any, images: Array, masks: Array) -> Array:
    """Mean absolute error of the level-1 map of each image, [batch]."""
    return jnp.abs(saliency_maps(model, variables, images) - masks[..., 0]).mean((1, 2))


def validation_error(
    state: TrainState, pairs: Pairs, config: ConfigDict, watchdog: Watchdog, progress: bool = True
) -> float:
    """Returns the mean absolute error in [0, 1] over `pairs`, at the size of training.

    Each process computes its share of them.
    """
    processes, devices = jax.process_count(), jax.local_devices()
    share = pairs.subset(range(jax.process_index(), len(pairs), processes))
    batch_size = config.batch_size // processes
    model = state.model.clone(axis_name=None)
    variables = place(jax.device_get(state.variables), devices)
    total, count = 0.0, 0
    if len(share):
        batches = evaluation_batches(share, batch_size=batch_size, size=config.data.size, workers=config.loop.workers)
        steps = -(-len(share) // batch_size)
        shown = progress and sys.stderr.isatty()  # a log file gets the result alone
        with batches:
            for batch in progress_bar(batches, total=steps, shown=shown, desc="validation", leave=False, unit="batch"):
                watchdog.enter(f"step {int(state.step)}: validation", compiles=count == 0)
                images, masks = place((batch["image"], batch["mask"]), devices, split=True)
                errors = np.asarray(_absolute_errors(model, variables, images, masks), np.float64)
                total, count = total + float(errors[batch["valid"]].sum()), count + int(batch["valid"].sum())
    total, count = from_all(np.array([total, count], np.float32)).sum(0).tolist()
    return total / count
