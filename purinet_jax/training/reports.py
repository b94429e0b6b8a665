"""What a run reports while it trains: progress, `log.jsonl`, TensorBoard and, on request, a profile."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from purinet_jax.devices import matrix_product_rate
from purinet_jax.files import write_atomically
from purinet_jax.network.flops import train_step_flops
from purinet_jax.network.inference import all_maps
from purinet_jax.network.model import PurNet
from purinet_jax.network.panels import panel
from purinet_jax.progress import progress_bar
from purinet_jax.training.step import TrainState, with_superpixels
from purinet_jax.training.stopping import NonFiniteLoss

logger = logging.getLogger(__name__)


class Profiler:
    """Traces `steps` steps from step `start` on with JAX's profiler."""

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        self._folder, self._steps, self._running = folder, range(start, start + steps), False

    def __enter__(self) -> "Profiler":
        return self

    def before(self, step: int, state: TrainState) -> None:
        """Must be called before each step, with the state that it starts from."""
        if self._running and step not in self._steps:
            jax.block_until_ready(state)
            self._stop()
        elif self._steps and not self._running and step == self._steps.start:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            # Tracing Python's function calls slows down what is measured.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
            self._running = True

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        (trace,) = sorted(self._folder.rglob("perfetto_trace.json.gz"))[-1:]
        logger.info("profile: tensorboard --logdir %s, or %s at ui.perfetto.dev", self._folder, trace)

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()


class RunLog:
    """Writes progress, `log.jsonl` and TensorBoard; without an `output` it only checks that all metrics are finite."""

    def __init__(self, output: Path | None, config: ConfigDict, model: PurNet, start: int, progress: bool) -> None:
        self.progress = progress and output is not None
        self._config, self._output, self._events = config, output, None
        if output is not None:
            _drop_later_steps(output / "log.jsonl", start)
            (output / "tensorboard").mkdir(exist_ok=True)
            # In this thread: tensorboardX's own would wait for ever on a full disk.
            self._events = EventsWriter(str(output / "tensorboard" / "events"))
            # TensorBoard then drops what a killed run wrote of the steps that follow.
            self._write(Event(session_log=SessionLog(status=SessionLog.START), step=start + 1))
            # Model FLOP utilisation per image per second, relative to the devices' rate in a matrix product.
            work = train_step_flops(model, config.data.size)
            self._image_share = work / (jax.device_count() * matrix_product_rate(config.dtype))
        self._bar = progress_bar(
            total=config.steps, shown=self.progress, initial=start, desc="training", unit="step", smoothing=0.05
        )
        self._pending: tuple[int, dict[str, Array], list[str], int] | None = None
        self._since, self._images, self._pixels = time.perf_counter(), 0, 0
        self._window: list[dict[str, np.ndarray]] = []

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._events is not None:
            self._events.close()

    def metrics(self, step: int, metrics: dict[str, Array], names: list[str], size: int) -> None:
        """Keeps a step's metrics and reports those of the step before, for which nothing has to be waited for."""
        self.flush()
        self._pending = (step, metrics, names, size)

    def flush(self) -> None:
        """Reports the metrics that are kept.

        Raises:
          NonFiniteLoss: one of them is NaN or Inf.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._report(*pending)

    def _report(self, step: int, metrics: dict[str, Array], names: list[str], size: int) -> None:
        values = {name: np.asarray(value.addressable_data(0))[0] for name, value in metrics.items()}
        wrong = [name for name, value in values.items() if not np.isfinite(value).all()]
        if wrong:
            terms = [name for name in wrong if name not in ("loss", "gradient_norm")] or wrong
            files = ", ".join(names) + (", or in another process" if jax.process_count() > 1 else "")
            raise NonFiniteLoss(f"step {step}: {', '.join(terms)} not finite, on {files}; nothing was saved since")
        self._images += len(names) * jax.process_count()
        self._pixels += len(names) * jax.process_count() * size**2
        self._window.append(values)
        self._bar.update(step - self._bar.n)
        if step % self._config.loop.log_every and step != self._config.steps:
            return
        seconds = time.perf_counter() - self._since
        values = {name: np.mean([entry[name] for entry in self._window], axis=0) for name in values}
        scalars = {name: float(value.sum()) for name, value in values.items()}
        shown = {name: f"{value:.3f}" for name, value in scalars.items() if name != "gradient_norm"}
        shown["images_per_second"] = f"{self._images / seconds:.2f}"
        self._bar.set_postfix(shown, refresh=sys.stderr.isatty())  # in a log file with the next tenth of the steps
        scalars["images_per_second"] = self._images / seconds
        if self._events is not None:
            images = self._pixels / self._config.data.size**2
            scalars["model_flop_utilisation"] = images / seconds * self._image_share
        levels = {
            f"levels/{name}/{level}": float(loss)
            for name, value in values.items()
            for level, loss in enumerate(value if value.ndim else [], start=1)
        }
        self._scalars(step, {f"train/{name}": value for name, value in scalars.items()}, levels)
        self._since, self._images, self._pixels = time.perf_counter(), 0, 0
        self._window.clear()

    def validation(self, step: int, mae: float) -> None:
        """Writes a validation's mean absolute error."""
        self._scalars(step, {"validation/mae": mae})
        if self.progress:
            self._bar.write(f"step {step}: validation MAE {mae:.4f}", file=sys.stderr)

    def panel(self, step: int, state: TrainState, batch: Mapping[str, Array]) -> None:
        """Adds a panel of the first device's first images of a batch, with their maps, to TensorBoard."""
        few = {key: jnp.asarray(value.addressable_data(0)[0, :4]) for key, value in batch.items()}
        few = jax.device_get(with_superpixels(few, state.objective))
        variables = jax.device_get(state.variables)
        maps = all_maps(state.model.clone(axis_name=None), variables, jnp.asarray(few["image"]))
        self._write(Event(summary=summary.image("maps", panel(few, maps), dataformats="HWC"), step=step))

    def _scalars(self, step: int, logged: dict[str, float], others: Mapping[str, float] = MappingProxyType({})) -> None:
        """Writes `logged` to `log.jsonl` and TensorBoard, and `others` to TensorBoard alone."""
        if self._output is None or self._events is None:
            return
        with (self._output / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **logged}) + "\n")
        for name, value in {**logged, **others}.items():
            self._write(Event(summary=summary.scalar(name, value), step=step))
        self._events.flush()

    def _write(self, event: Any) -> None:
        assert self._events is not None
        event.wall_time = time.time()
        self._events.write_event(event)


def _drop_later_steps(log: Path, start: int) -> None:
    """Removes what a killed run logged of the steps after its last checkpoint, which follow again."""
    kept = []
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # no log yet, or a line cut by the kill
        for line in log.read_text().splitlines():
            if json.loads(line)["step"] <= start:
                kept.append(f"{line}\n")
    write_atomically(log, "".join(kept).encode())
