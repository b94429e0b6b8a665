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
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from jax.experimental.multihost_utils import reached_preemption_sync_point
from ml_collections import ConfigDict

from purinet_jax.data import (
    Pairs,
    bad_pairs,
    check_pairs,
    evaluation_batches,
    open_pairs,
    training_batches,
    write_atomically,
)
from purinet_jax.data.pairs import some
from purinet_jax.devices import matrix_product_rate
from purinet_jax.errors import InputError
from purinet_jax.locks import only_process
from purinet_jax.network.flops import train_step_flops
from purinet_jax.network.inference import all_maps, saliency_maps
from purinet_jax.network.layers import bilinear_kernel
from purinet_jax.network.model import PurNet, build_model, model_config, named_attentions, without_device_axis
from purinet_jax.processes import check_same, from_all, is_first
from purinet_jax.training import checkpoints, configurations
from purinet_jax.training.losses import Losses, Objective, purnet_losses
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.panels import panel
from purinet_jax.training.step import (
    AXIS,
    TrainState,
    compiled_by_all,
    create_state,
    place,
    place_batches,
    place_state,
    pmap_step,
    with_superpixels,
)
from purinet_jax.training.watchdog import Watchdog
from purinet_jax.weights.convert import describe, load_file
from purinet_jax.weights.runs import FOLDER, HELD_OUT, whole_steps

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")


class NonFiniteLoss(FloatingPointError):
    """Training met NaN or Inf; the message names the term, the step and the files, in one line."""


class RunEnded(RuntimeError):
    """Something outside ended a run (a full disk, a lost process, no memory); the message is one line."""


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
        variables = _zeros(config)
    else:
        # Files that were read whole before the first step need not be read again to go on.
        (bad,) = bad_pairs([pairs], skip_bad, progress)
        if config.data.holdout:
            pairs.subset(range(len(pairs) - len(bad))).hold_out(config.data.holdout, config.seed)
        variables = _initial_variables(config, init, partial)
    if several:
        drawn_or_read = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(variables))
        check_same({"the variables before the first step": drawn_or_read})

    stop = _StopRequest()
    first = is_first()
    with (
        _failures_in_words(output) as doing,
        Watchdog(config.loop.timeout) as watchdog,
        only_process(output, "training in this folder") if first else contextlib.nullcontext(),
        stop,
        checkpoints.open_checkpoints(output, config.loop.keep) as checkpointer,
    ):
        state = create_state(model, variables, optimizer, objective, config.accumulate, config.average_decay, losses)
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
        end = start if _out_of_patience(validated, config.loop.patience) else config.steps
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
        profiler = _Profiler(output / "profile", start + 2, profile if first else 0)
        with batches, profiler, _Log(output if first else None, config, model, start, progress) as log:
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
                    mae = None
                    if validate:
                        mae = _validate(state, validation_pairs, config, log, watchdog, validated)
                    doing(f"step {done}: saving")
                    watchdog.stage(f"step {done}: saving it")
                    checkpoints.save_checkpoint(checkpointer, state, {**run, "validated": [*validated]}, mae)
                    saved = done
                if stopping or (validate and _out_of_patience(validated, config.loop.patience)):
                    break
            log.flush()
        doing("saving")
        watchdog.stage("saving the last checkpoint")
        checkpointer.wait()
        if saved is not None:
            logger.info("saved step %d in %s", saved, output)
        if int(state.step) < config.steps and _out_of_patience(validated, config.loop.patience):
            best, mae = min(validated, key=lambda entry: entry[1])
            logger.info("ended early: the validation MAE has not fallen below the %.4f of step %d", mae, best)
    return state


@contextlib.contextmanager
def _failures_in_words(output: Path) -> Iterator[Callable[[str], None]]:
    """Makes a `RunEnded` of what the system, the devices and Orbax raise; its function takes what is being done."""
    stage = "starting"

    def doing(what: str) -> None:
        nonlocal stage
        stage = what

    def ended(reason: str) -> RunEnded:
        steps = whole_steps(output / FOLDER)
        last = f"the last whole checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
        return RunEnded(f"{output}: {stage}: {reason}; {last}")

    hook = sys.unraisablehook

    def without_echoes(unraisable: Any) -> None:
        # Each file that Orbax could not write says so once more, with a traceback, to a loop that has ended.
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = without_echoes
    try:
        yield doing
    except (InputError, NonFiniteLoss):
        raise
    except Exception as error:
        # Orbax hands on errors of threads and of C++ as other kinds; the words stay.
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        text = " ".join(str(cause) for cause in causes)
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "No space left on device" in text or "File too large" in text or "Disk quota exceeded" in text:
            raise ended("no space is left on the disk") from error
        if isinstance(error, jax.errors.JaxRuntimeError):
            if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
                raise ended(f"out of memory: {line} (config.loop.remat, config.accumulate, a smaller batch)") from error
            if jax.process_count() > 1:
                raise ended(f"another process was lost: {line}") from error
        if isinstance(error, OSError):
            raise ended(f"{error.strerror or line}{f': {error.filename}' if error.filename else ''}") from error
        raise
    finally:
        sys.unraisablehook = hook


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


def _zeros(config: ConfigDict) -> dict[str, Any]:
    """Variables of the configured network to restore a checkpoint into."""
    shapes = jax.eval_shape(build_model(config.model).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes))


@jax.jit(static_argnums=0)
def _drawn_variables(model: PurNet, key: Array) -> Any:
    return model.init(key, jnp.zeros((1, 64, 64, 3)))


def _initial_variables(config: ConfigDict, init: str | Path | None, partial: bool = False) -> dict[str, Any]:
    """Variables drawn from the seed, with those that `init` holds in their place; `partial`: those that fit."""
    # Read and compared first: a file that cannot be used is said before the network is compiled.
    weights, weights_config = ({}, {}) if init is None else load_file(init)
    # Without a device axis: nothing is averaged while parameters are drawn.
    model = build_model(config.model)
    target, source = (traverse_util.flatten_dict(tree) for tree in (_zeros(config), weights))
    if partial and init is not None:
        source = _that_fit(source, target, init)
    for path in sorted(target.keys() & source.keys()):
        if target[path].shape != source[path].shape:
            raise InputError(
                f"{init}: {'/'.join(path)} is {source[path].shape}, the configured network's is {target[path].shape}"
            )
    surplus = sorted("/".join(path) for path in source.keys() - target.keys())
    if surplus or (weights_config.get("backbone", config.model.backbone) != config.model.backbone and not partial):
        raise InputError(
            f"{init}: {describe(weights_config)} does not fit {describe(model_config(model))}"
            + (f" ({len(surplus)} tensors too many, {surplus[0]} the first)" if surplus else "")
            + "; --partial takes what fits"
        )
    # Weights of the whole network leave nothing to draw, which takes compiling it.
    if target.keys() - source.keys():
        target = traverse_util.flatten_dict(dict(_drawn_variables(model, jax.random.key(config.seed))))
    if init is None:
        return traverse_util.unflatten_dict(target)
    target |= source
    if config.reset_upsampling:
        for path, value in target.items():
            if path[-1] == "transposed_kernel":
                target[path] = jnp.asarray(bilinear_kernel(value.shape[0], value.shape[2]))
    logger.info("%s: %d of %d tensors (%s)", init, len(source), len(target), describe(weights_config))
    return traverse_util.unflatten_dict(target)


def _that_fit(source: dict[Any, Any], target: dict[Any, Any], init: str | Path) -> dict[Any, Any]:
    """The tensors of `source` that have a place in `target`; the log names the others."""
    other_shapes = [path for path in sorted(source.keys() & target.keys()) if source[path].shape != target[path].shape]
    surplus, missing = sorted(source.keys() - target.keys()), sorted(target.keys() - source.keys())
    for paths, kind in (
        (other_shapes, "of another shape, so drawn anew"),
        (surplus, "without a place in the configured network"),
        (missing, "not in it, so drawn anew"),
    ):
        if paths:
            logger.warning("%s: --partial, %s: %s", init, kind, some(["/".join(x) for x in paths], "tensor"))
    fitting = {path: x for path, x in source.items() if path in target and path not in set(other_shapes)}
    if not fitting:
        raise InputError(f"{init}: none of its {len(source)} tensors fits the configured network")
    return fitting


class _StopRequest:
    """Turns SIGTERM and SIGINT into a flag that the loop reads after each step; a second one has its usual effect.

    Several processes must stop after the same step: there JAX receives SIGTERM, in any of them, and agrees on one.
    """

    requested = False

    def __enter__(self) -> "_StopRequest":
        kinds = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {kind: signal.getsignal(kind) for kind in kinds}
        for kind in self._before:
            signal.signal(kind, self._request)
        return self

    def after(self, step: int) -> bool:
        """Whether the run stops after this step; to be asked after every step."""
        if jax.process_count() == 1:
            return self.requested
        stopping = reached_preemption_sync_point(step)
        if stopping and is_first():
            logger.warning("SIGTERM: saving after step %d", step)
        return stopping

    def _request(self, kind: int, frame: FrameType | None) -> None:
        logger.warning("%s: saving after this step", signal.Signals(kind).name)
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


@jax.jit(static_argnums=0)
def _absolute_errors(model: PurNet, variables: Any, images: Array, masks: Array) -> Array:
    """Mean absolute error of the level-1 map of each image, [batch]."""
    return jnp.abs(saliency_maps(model, variables, images) - masks[..., 0]).mean((1, 2))


def _out_of_patience(validated: Sequence[Sequence[float]], patience: int) -> bool:
    """Whether the last `patience` errors of [step, error] are all no lower than the lowest before them; 0: never."""
    errors = [error for _, error in validated]
    return 0 < patience < len(errors) and min(errors[-patience:]) >= min(errors[:-patience])


def _validate(
    state: TrainState,
    pairs: Pairs | None,
    config: ConfigDict,
    log: "_Log",
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


class _Profiler:
    """Traces a few steps (JAX's profiler), once what is compiled first has been."""

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        self._folder, self._steps, self._running = folder, range(start, start + steps), False

    def __enter__(self) -> "_Profiler":
        return self

    def before(self, step: int, state: TrainState) -> None:
        """To be called before each step, counted from 0, with the state that it starts from."""
        if self._running and step not in self._steps:
            jax.block_until_ready(state)
            self._stop()
        elif self._steps and not self._running and step == self._steps.start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        (trace,) = sorted(self._folder.rglob("perfetto_trace.json.gz"))[-1:]
        logger.info("profile: tensorboard --logdir %s, or %s at ui.perfetto.dev", self._folder, trace)

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()


class _Log:
    """Progress bar, `log.jsonl` and TensorBoard. Metrics are read one step late, when they cost no waiting."""

    def __init__(self, output: Path | None, config: ConfigDict, model: PurNet, start: int, progress: bool) -> None:
        from tqdm import tqdm

        # All processes read the metrics, since NaN ends all of them; the first one writes.
        self.progress = progress and output is not None
        self.config = config
        self.file, self.events = None, None
        if output is not None:
            self.file = output / "log.jsonl"
            # A killed run may have logged steps after its last checkpoint; they are about to be taken again.
            kept = [line for line in self._lines(self.file) if line["step"] <= start]
            write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self.events = _Events(output / "tensorboard", start + 1)
            # The share of what its devices do in a matrix product that a step's useful work is.
            work = train_step_flops(model, config.data.size)
            self.image_share = work / (jax.device_count() * matrix_product_rate(config.dtype))
        self.bar = tqdm(
            initial=start,
            total=config.steps,
            desc="training",
            unit="step",
            disable=not self.progress,
            smoothing=0.05,
        )
        self.pending: tuple[int, dict[str, Array], list[str], int] | None = None
        self.since, self.images, self.pixels = time.perf_counter(), 0, 0
        self.window: list[dict[str, np.ndarray]] = []

    @staticmethod
    def _lines(file: Path) -> Iterator[dict[str, Any]]:
        if file.exists():
            for line in file.read_text().splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:  # the line that the kill cut
                    return

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.events is not None:
            self.events.close()

    def metrics(self, step: int, metrics: dict[str, Array], names: list[str], size: int) -> None:
        """Takes a step's metrics and reports those of the step before."""
        before, self.pending = self.pending, (step, metrics, names, size)
        if before is not None:
            self._report(*before)

    def flush(self) -> None:
        """Reports what is pending; afterwards every step taken is known to be finite."""
        before, self.pending = self.pending, None
        if before is not None:
            self._report(*before)

    def _report(self, step: int, metrics: dict[str, Array], names: list[str], size: int) -> None:
        # The same on all devices.
        values = {name: np.asarray(value.addressable_data(0))[0] for name, value in metrics.items()}
        wrong = [name for name, value in values.items() if not np.isfinite(value).all()]
        if wrong:
            terms = [name for name in wrong if name not in ("loss", "gradient_norm")] or wrong
            files = ", ".join(names) + (", or in another process" if jax.process_count() > 1 else "")
            raise NonFiniteLoss(f"step {step}: {', '.join(terms)} not finite, on {files}; nothing was saved since")
        self.images += len(names) * jax.process_count()
        self.pixels += len(names) * jax.process_count() * size**2
        self.window.append(values)
        self.bar.update(step - self.bar.n)
        if step % self.config.loop.log_every and step != self.config.steps:
            return
        seconds = time.perf_counter() - self.since
        # The mean since the last report: single batches differ too much to show a trend.
        values = {name: np.mean([entry[name] for entry in self.window], axis=0) for name in values}
        self.window.clear()
        scalars = {name: float(value.sum()) for name, value in values.items()}
        scalars["images_per_second"] = self.images / seconds
        if self.events is not None:
            # Work grows with the area, where batches differ in size.
            images = self.pixels / self.config.data.size**2
            scalars["model_flop_utilisation"] = images / seconds * self.image_share
        self.since, self.images, self.pixels = time.perf_counter(), 0, 0
        hidden = ("gradient_norm", "model_flop_utilisation")
        shown = {name: f"{value:.3f}" for name, value in scalars.items() if name not in hidden}
        shown["images_per_second"] = f"{scalars['images_per_second']:.2f}"
        self.bar.set_postfix(shown)
        self.scalars(step, {f"train/{name}": value for name, value in scalars.items()})
        if self.events is not None:
            for name, value in values.items():
                for level, loss in enumerate(np.atleast_1d(value) if value.ndim else [], start=1):
                    self.events.scalar(f"levels/{name}/{level}", float(loss), step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes named values to `log.jsonl` and TensorBoard."""
        if self.file is None or self.events is None:
            return
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.events.scalar(name, value, step)
        self.events.flush()
        if "validation/mae" in values:
            self.bar.write(f"step {step}: validation MAE {values['validation/mae']:.4f}")

    def panel(self, step: int, state: TrainState, batch: Mapping[str, Array]) -> None:
        """Adds a panel of the first images of the first device's share of a batch, with their maps, to TensorBoard."""
        assert self.events is not None
        few = {key: jnp.asarray(value.addressable_data(0)[0, :4]) for key, value in batch.items()}
        few = jax.device_get(with_superpixels(few, state.objective))
        variables = jax.device_get(state.variables)
        maps = all_maps(without_device_axis(state.model), variables, jnp.asarray(few["image"]))
        self.events.image("maps", panel(few, maps), step)


class _Events:
    """TensorBoard's file, written when it is asked for: tensorboardX's thread would wait for ever on a full disk."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        # TensorBoard forgets what a killed run wrote of the steps that follow.
        self._add(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        self._add(Event(summary=summary.scalar(name, value), step=step))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """uint8 [height, width, 3]."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        self._add(Event(summary=summary.image(name, image, dataformats="HWC"), step=step))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
