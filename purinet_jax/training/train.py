"""The training loop: batches, step, checkpoints and logs, readable from top to bottom.

A run lives in one folder: `config.json`, `checkpoints/`, `log.jsonl`, `tensorboard/` and, where pairs were held out,
their names in `held_out.txt`. Started again on the same folder it goes on from the latest checkpoint with the very
batches that would have followed.
"""

import dataclasses
import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from ml_collections import ConfigDict

from purinet_jax.configs import base
from purinet_jax.data import (
    Pairs,
    bad_pairs,
    evaluation_batches,
    open_pairs,
    training_batches,
    write_atomically,
)
from purinet_jax.errors import InputError
from purinet_jax.locks import only_process
from purinet_jax.network.inference import all_maps, saliency_maps
from purinet_jax.network.layers import bilinear_kernel
from purinet_jax.network.model import PurNet, build_model, model_config, named_attentions, without_device_axis
from purinet_jax.training import checkpoints
from purinet_jax.training.losses import Losses, Objective, purnet_losses
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.panels import panel
from purinet_jax.training.step import (
    AXIS,
    TrainState,
    create_state,
    place_batches,
    place_state,
    pmap_step,
    with_superpixels,
)
from purinet_jax.weights.convert import describe, load_file
from purinet_jax.weights.runs import HELD_OUT

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")


class NonFiniteLoss(FloatingPointError):
    """Training met NaN or Inf; the message names the term, the step and the files, in one line."""


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
      progress: show progress bars.

    Returns:
      The state after the last step, or after the step in which SIGTERM or SIGINT arrived (it is saved then too).

    Raises:
      InputError: data, configuration, weights or folder cannot be used.
      NonFiniteLoss: a loss or gradient was NaN or Inf; checkpoints hold only states from before it.
    """
    # Everything that can be wrong with what the user gave is found before the first file is written.
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: not a folder")
    _check_config(config)
    objective = _settings(Objective, config.losses, "losses")
    devices = jax.devices()
    _check_batch(config, len(devices))
    model = build_model(config.model, axis_name=AXIS, dtype=jnp.dtype(config.dtype))
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
    if resuming:
        variables = _zeros(config)
    else:
        # Files that were read whole before the first step need not be read again to go on.
        (bad,) = bad_pairs([pairs], skip_bad, progress)
        if config.data.holdout:
            pairs.subset(range(len(pairs) - len(bad))).hold_out(config.data.holdout, config.seed)
        variables = _initial_variables(config, init)

    stop = _StopRequest()
    with (
        only_process(output, "training in this folder"),
        stop,
        checkpoints.open_checkpoints(output, config.loop.keep) as checkpointer,
    ):
        state = create_state(model, variables, optimizer, objective, config.accumulate, config.average_decay, losses)
        if resuming:
            run = checkpoints.read_run(checkpointer)
            if run["data"] != pairs.fingerprint:
                raise InputError(f"{data}: not the data set that the run in {output} was started with")
            state = checkpoints.restore_checkpoint(checkpointer, state)
            logger.info("going on from step %d of %s", int(state.step), output)
        else:
            run = {"config": config.to_dict(), "data": pairs.fingerprint, "bad": bad}
            write_atomically(output / "config.json", (json.dumps(config.to_dict(), indent=2) + "\n").encode())
            logger.info("%s, %s parameters", describe(config.model), f"{_count(state.params):,}")
        pairs = pairs.subset(sorted(set(range(len(pairs))) - set(run["bad"])))
        if config.data.holdout:
            pairs, validation_pairs = pairs.hold_out(config.data.holdout, config.seed)
            write_atomically(output / HELD_OUT, "".join(f"{name}\n" for name in validation_pairs.names).encode())
        # Step and error of every validation so far; runs of earlier versions kept none.
        validated: list[list[float]] = run.get("validated", [])
        start = int(state.step)
        end = start if _out_of_patience(validated, config.loop.patience) else config.steps
        state = place_state(state, devices)
        step = pmap_step(devices)
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
        with batches, _Log(output, config, start, progress) as log:
            placed = place_batches(batches, devices)
            if config.loop.validate_first and validation_pairs is not None and not start and not validated:
                mae = _validate(state, validation_pairs, config, log, validated)
                checkpoints.save_checkpoint(checkpointer, state, {**run, "validated": [*validated]}, mae)
                saved = 0
            for number, (index, batch) in zip(range(start, end), placed, strict=False):
                names = [pairs.names[i] for i in index]
                state, metrics = step(state, batch)
                # The step runs on while the one before it is read: the loop never waits for what it just started.
                log.metrics(number + 1, metrics, names)
                done, stopping = number + 1, stop.requested
                due = done % config.loop.checkpoint_every == 0 or done == config.steps or stopping
                validate = validation_pairs is not None and (
                    done % config.loop.validate_every == 0 or done == config.steps
                )
                if config.loop.panel_every and done % config.loop.panel_every == 0:
                    log.panel(done, state, batch)
                if due or validate:
                    log.flush()  # raises for NaN before the state it made is saved
                    mae = _validate(state, validation_pairs, config, log, validated) if validate else None
                    checkpoints.save_checkpoint(checkpointer, state, {**run, "validated": [*validated]}, mae)
                    saved = done
                if stopping or (validate and _out_of_patience(validated, config.loop.patience)):
                    break
            log.flush()
        checkpointer.wait()
        if saved is not None:
            logger.info("saved step %d in %s", saved, output)
        if _out_of_patience(validated, config.loop.patience):
            best, mae = min(validated, key=lambda entry: entry[1])
            logger.info("ended early: the validation MAE has not fallen below the %.4f of step %d", mae, best)
    return state


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
    ours, theirs, default = (
        traverse_util.flatten_dict(json.loads(text), sep=".")
        for text in (json.dumps(config.to_dict()), saved.read_text(), json.dumps(base.get_config().to_dict()))
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


def _initial_variables(config: ConfigDict, init: str | Path | None) -> dict[str, Any]:
    """Variables drawn from the seed, with those that `init` holds in their place."""
    # Read and compared first: a file that cannot be used is said before the network is compiled.
    weights, weights_config = ({}, {}) if init is None else load_file(init)
    # Without a device axis: nothing is averaged while parameters are drawn.
    model = build_model(config.model)
    target, source = (traverse_util.flatten_dict(tree) for tree in (_zeros(config), weights))
    for path in sorted(target.keys() & source.keys()):
        if target[path].shape != source[path].shape:
            raise InputError(
                f"{init}: {'/'.join(path)} is {source[path].shape}, the configured network's is {target[path].shape}"
            )
    surplus = sorted("/".join(path) for path in source.keys() - target.keys())
    if surplus or weights_config.get("backbone", config.model.backbone) != config.model.backbone:
        raise InputError(
            f"{init}: {describe(weights_config)} does not fit {describe(model_config(model))}"
            + (f" ({len(surplus)} tensors too many, {surplus[0]} the first)" if surplus else "")
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


class _StopRequest:
    """Turns SIGTERM and SIGINT into a flag that the loop reads after each step; a second one has its usual effect."""

    requested = False

    def __enter__(self) -> "_StopRequest":
        self._before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
        for kind in self._before:
            signal.signal(kind, self._request)
        return self

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
    state: TrainState, pairs: Pairs | None, config: ConfigDict, log: "_Log", validated: list[list[float]]
) -> float:
    """Mean absolute error in [0, 1] over `pairs`, at the size of training; noted with its step in `validated`."""
    from clu import metrics
    from tqdm import tqdm

    assert pairs is not None
    model, variables = without_device_axis(state.model), jax.device_get(state.variables)
    total = metrics.Average.empty()
    batches = evaluation_batches(
        pairs, batch_size=config.batch_size, size=config.data.size, workers=config.loop.workers
    )
    count = -(-len(pairs) // config.batch_size)
    with batches:
        for batch in tqdm(batches, "validation", count, leave=False, unit="batch", disable=not log.progress):
            errors = _absolute_errors(model, variables, batch["image"], batch["mask"])
            total = total.merge(metrics.Average.from_model_output(errors, mask=jnp.asarray(batch["valid"])))
    mae = float(total.compute())
    validated.append([int(state.step), mae])
    log.scalars(int(state.step), {"validation/mae": mae})
    return mae


class _Log:
    """Progress bar, `log.jsonl` and TensorBoard. Metrics are read one step late, when they cost no waiting."""

    def __init__(self, output: Path, config: ConfigDict, start: int, progress: bool) -> None:
        from tensorboardX import SummaryWriter
        from tqdm import tqdm

        self.progress = progress
        self.config = config
        self.file = output / "log.jsonl"
        # A killed run may have logged steps after its last checkpoint; they are about to be taken again.
        kept = [line for line in self._lines() if line["step"] <= start]
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=start + 1)
        self.bar = tqdm(
            initial=start,
            total=config.steps,
            desc="training",
            unit="step",
            disable=not progress,
            smoothing=0.05,
        )
        self.pending: tuple[int, dict[str, Array], list[str]] | None = None
        self.since, self.images = time.perf_counter(), 0
        self.window: list[dict[str, np.ndarray]] = []

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:  # the line that the kill cut
                    return

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.writer.close()

    def metrics(self, step: int, metrics: dict[str, Array], names: list[str]) -> None:
        """Takes a step's metrics and reports those of the step before."""
        before, self.pending = self.pending, (step, metrics, names)
        if before is not None:
            self._report(*before)

    def flush(self) -> None:
        """Reports what is pending; afterwards every step taken is known to be finite."""
        before, self.pending = self.pending, None
        if before is not None:
            self._report(*before)

    def _report(self, step: int, metrics: dict[str, Array], names: list[str]) -> None:
        values = {name: np.asarray(value).mean(0) for name, value in metrics.items()}  # over devices
        wrong = [name for name, value in values.items() if not np.isfinite(value).all()]
        if wrong:
            terms = [name for name in wrong if name not in ("loss", "gradient_norm")] or wrong
            files = ", ".join(names)
            raise NonFiniteLoss(f"step {step}: {', '.join(terms)} not finite, on {files}; nothing was saved since")
        self.images += len(names)
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
        self.since, self.images = time.perf_counter(), 0
        shown = {name: f"{value:.3f}" for name, value in scalars.items() if name != "gradient_norm"}
        shown["images_per_second"] = f"{scalars['images_per_second']:.2f}"
        self.bar.set_postfix(shown)
        self.scalars(step, {f"train/{name}": value for name, value in scalars.items()})
        for name, value in values.items():
            for level, loss in enumerate(np.atleast_1d(value) if value.ndim else [], start=1):
                self.writer.add_scalar(f"levels/{name}/{level}", float(loss), step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes named values to `log.jsonl` and TensorBoard."""
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if "validation/mae" in values:
            self.bar.write(f"step {step}: validation MAE {values['validation/mae']:.4f}")

    def panel(self, step: int, state: TrainState, batch: Mapping[str, Array]) -> None:
        """Adds a panel of the first images of the first device's share of a batch, with their maps, to TensorBoard."""
        few = {key: jnp.asarray(value.addressable_data(0)[0, :4]) for key, value in batch.items()}
        few = jax.device_get(with_superpixels(few, state.objective))
        variables = jax.device_get(state.variables)
        maps = all_maps(without_device_axis(state.model), variables, jnp.asarray(few["image"]))
        self.writer.add_image("maps", panel(few, maps), step, dataformats="HWC")
