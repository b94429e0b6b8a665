"""Makes images for many requests: threads decode and encode, one thread runs the network on batches of them."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import TooManyPixels, count_pixels, encode, read_srgb
from purinet_jax.devices import usable_cores
from purinet_jax.errors import InputError
from purinet_jax.prediction.cutouts import visible
from purinet_jax.prediction.rendering import Style, render, style_metadata
from purinet_jax.prediction.stream import checked_size

if TYPE_CHECKING:  # it imports JAX, which tests with another network do not need
    from purinet_jax.prediction.predictor import Predictor


@dataclass(frozen=True)
class Task:
    """An image's file and what to make of it; `finish`, if given, is applied to the rendering before it is encoded."""

    data: bytes
    style: Style
    finish: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass
class _Inference:
    square: np.ndarray  # uint8 [size, size, 3]
    attention: bool
    prediction: Future[Any] = field(default_factory=Future)


class Worker:
    """Makes images of uploaded files; `close` it at the end."""

    def __init__(self, predictor: "Predictor", *, batch_size: int = 1, pixels: int = 64_000_000) -> None:
        """Compiles the network for batches of 1, 2, 4, … `batch_size` images and for attention, and starts the threads.

        `pixels` limits all images in progress together, and so one alone; a pixel takes about 20 bytes of memory.
        Raises InputError if `batch_size` or the predictor's size is not positive.
        """
        if batch_size < 1:
            raise InputError(f"batch_size: must be at least 1, not {batch_size}")
        self.attention = bool(predictor.model.attention)
        self.size = checked_size(predictor.size)
        """Side of the square that images are resized to, pixels."""
        self.pixels = pixels
        self.on_batch: Callable[[int], object] = lambda size: None
        """Called, in the network's thread, with the number of images in each batch."""
        self._predictor = predictor
        self._batch_sizes = [*(1 << power for power in range((batch_size - 1).bit_length())), batch_size]
        self._budget = _Budget(pixels)
        self._queue: queue.SimpleQueue[_Inference | None] = queue.SimpleQueue()
        black = np.zeros((self.size, self.size, 3), np.uint8)
        for count in self._batch_sizes:
            predictor.square_maps([black] * count, count)
        if self.attention:
            predictor.square_finest_maps([black], 1)
        self._network = threading.Thread(target=self._run_network, name="network", daemon=True)
        self._network.start()
        # The threads of a batch wait together for its predictions, while others decode and encode.
        self._pool = ThreadPoolExecutor(usable_cores() + batch_size, thread_name_prefix="image")

    @property
    def alive(self) -> bool:
        """Whether the network's thread runs."""
        return self._network.is_alive()

    def submit(self, task: Task) -> Future[bytes]:
        """Returns the future of the file that a task describes.

        Its bytes are those that `purinet predict` writes if the batch size is 1; in larger batches floats are rounded
        differently, and a grey level may differ by one. It may raise InputError: the file is not an image, or damaged;
        TooManyPixels: it has more than `pixels`, or than the format holds; and what `finish` raises.
        """
        waiting = [task]
        # A cancelled task stays in the pool's queue until its turn, but its upload must not.
        future = self._pool.submit(self._make, waiting)
        future.add_done_callback(lambda _: waiting.clear())
        return future

    def close(self) -> None:
        """Ends the threads after the images in progress; those that have not started are cancelled."""
        self._pool.shutdown(cancel_futures=True)
        self._queue.put(None)
        self._network.join()

    def _make(self, waiting: list[Task]) -> bytes:
        task = waiting.pop()
        data, style, finish = task.data, task.style, task.finish
        del task
        pixels = count_pixels(data)
        if pixels > self.pixels:
            raise TooManyPixels(f"image: has {pixels:,} pixels, more than {self.pixels:,}")
        with self._budget.take(pixels):
            image, alpha = read_srgb(data)
            metadata = style_metadata(style, data)
            del data
            inference = _Inference(resize_image(visible(image, alpha), self.size, self.size), style.kind == "attention")
            self._queue.put(inference)
            prediction = inference.prediction.result()
            rendered = render(style, prediction, inference.square, image.shape, image, alpha)
            if finish is not None:
                rendered = finish(rendered)
            return encode(rendered, style.ending, style.ending[1:], metadata)

    def _run_network(self) -> None:
        while (first := self._queue.get()) is not None:
            batch: list[_Inference | None] = [first]  # requests that arrive while a batch runs join the next one
            with suppress(queue.Empty):
                while len(batch) < self._batch_sizes[-1]:
                    batch.append(self._queue.get_nowait())
            inferences = [inference for inference in batch if inference is not None]
            maps = [inference for inference in inferences if not inference.attention]
            # Attention is seldom requested, and large: one at a time.
            for part in (maps, *([inference] for inference in inferences if inference.attention)):
                self._predict(part)
            if len(inferences) < len(batch):
                return

    def _predict(self, inferences: Sequence[_Inference]) -> None:
        if not inferences:
            return
        predict: Any = self._predictor.square_finest_maps if inferences[0].attention else self._predictor.square_maps
        try:
            batch_size = next(size for size in self._batch_sizes if size >= len(inferences))
            predictions = predict([inference.square for inference in inferences], batch_size)
        except Exception as error:  # such as a device out of memory, which may have enough for the next batch
            for inference in inferences:
                inference.prediction.set_exception(error)
            return
        for inference, prediction in zip(inferences, predictions, strict=True):
            inference.prediction.set_result(prediction)
        self.on_batch(len(inferences))


class _Budget:
    """An amount that threads share; each waits, in turn, until there is enough left."""

    def __init__(self, amount: int) -> None:
        self._left = amount
        self._turn = threading.Lock()  # of the next thread, so that many small amounts do not hold up a large one
        self._returned = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Takes an amount for the duration of the context."""
        with self._turn, self._returned:
            self._returned.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._returned:
                self._left += amount
                self._returned.notify()
