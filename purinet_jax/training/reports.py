"""What a run tells while it trains: progress bar, `log.jsonl`, TensorBoard and, where it is asked for, a profile."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from purinet_jax.devices import matrix_product_rate
from purinet_jax.files import write_atomically
from purinet_jax.network.flops import train_step_flops
from purinet_jax.network.inference import all_maps
from purinet_jax.network.model import PurNet, without_device_axis
from purinet_jax.network.panels import panel
from purinet_jax.training.step import TrainState, with_superpixels
from purinet_jax.training.stopping import NonFiniteLoss

logger = logging.getLogger(__name__)


class Profiler:
    """Traces a few steps (JAX's profiler), once what is compiled first has been."""

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        self._folder, self._steps, self._running = folder, range(start, start + steps), False

    def __enter__(self) -> "Profiler":
        return self

    def before(self, step: int, state: TrainState) -> None:
        """To be called before each step, counted from 0, with the state that it starts from."""
        if self._running and step not in self._steps:
            jax.block_until_ready(state)
            self._stop()
        elif self._steps and not self._running and step == self._steps.start:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            # Not each call of a Python function: they slow down what is measured, and come from threads that may end.
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

    def __enter__(self) -> "RunLog":
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
