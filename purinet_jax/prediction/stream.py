"""The way of images through a network, a few batches in memory at any time: threads read ahead of the device and finish
behind it. Needs no JAX itself.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from purinet_jax.errors import InputError
from purinet_jax.workers import in_order

_Answer = TypeVar("_Answer")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class SquareImage:
    """An image on its way: square uint8 [size, size, 3], own shape (height, width, …), and what else belongs to it."""

    square: np.ndarray
    shape: tuple[int, ...]
    beside: Any


def inference_stream(
    ask: Callable[[Sequence[np.ndarray], int], Iterable[_Answer]],
    count: int,
    read: Callable[[int], SquareImage],
    finish: Callable[[int, _Answer, SquareImage], _Result],
    *,
    batch_size: int,
) -> Generator[_Result | InputError]:
    """`predict_stream` before anything is made of the network's answers.

    Args:
      ask: squares and batch size, as of `Predictor.square_maps`, → one answer for each square.
      count, batch_size: as of `predict_stream`.
      read: index → the image, squashed to the network's square. Called in threads, ahead of the device.
      finish: index, answer and image → a result. Called in threads, behind the device.

    Yields, raises: as `predict_stream`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: must be at least 1, not {batch_size}")
    batch_size = min(batch_size, max(count, 1))

    def attempt(index: int) -> tuple[int, SquareImage | InputError]:
        try:
            return index, read(index)
        except InputError as error:
            return index, error

    def with_answers(
        images: Iterable[tuple[int, SquareImage | InputError]],
    ) -> Iterator[tuple[int, SquareImage | InputError, _Answer | None]]:
        batch: list[tuple[int, SquareImage | InputError]] = []  # errors keep their places between the images
        good = 0
        for image in images:
            batch.append(image)
            good += isinstance(image[1], SquareImage)
            if good == batch_size:
                yield from on_device(batch)
                batch, good = [], 0
        yield from on_device(batch)

    def on_device(
        batch: Sequence[tuple[int, SquareImage | InputError]],
    ) -> Iterator[tuple[int, SquareImage | InputError, _Answer | None]]:
        squares = [image.square for _, image in batch if isinstance(image, SquareImage)]
        answers = iter(ask(squares, batch_size) if squares else ())
        return ((index, image, next(answers) if isinstance(image, SquareImage) else None) for index, image in batch)

    def complete(item: tuple[int, SquareImage | InputError, Any]) -> _Result | InputError:
        index, image, answer = item
        return image if isinstance(image, InputError) else finish(index, answer, image)

    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="purinet")
    try:
        images = in_order(lambda index: pool.submit(attempt, index), range(count), 2 * batch_size + threads)
        yield from in_order(lambda item: pool.submit(complete, item), with_answers(images), batch_size)
    finally:
        pool.shutdown(cancel_futures=True)


def show_progress(results: Iterable[_Result], count: int | None, progress: bool) -> Iterable[_Result]:
    """`results`, of which there are `count` (None: not known), with a bar on stderr if `progress`."""
    if not progress:
        return results
    from tqdm import tqdm

    return tqdm(results, total=count, desc="predicting", unit="image")


def checked_size(size: int) -> int:
    """`size`. Raises InputError if it is not positive."""
    if size < 1:
        raise InputError(f"size: must be at least 1, not {size}")
    return size
