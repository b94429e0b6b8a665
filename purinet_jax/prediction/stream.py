"""Stream images through a network: threads read ahead of the device and finish behind it. Imports no JAX."""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from purinet_jax.data.images import PIXEL_LIMIT
from purinet_jax.devices import usable_cores
from purinet_jax.errors import InputError
from purinet_jax.workers import in_order

_Prediction = TypeVar("_Prediction")
_Result = TypeVar("_Result")


class SquareImage(NamedTuple):
    """An image resized for the network: uint8 [size, size, 3], its shape before, and what else `finish` needs of it."""

    square: np.ndarray
    shape: tuple[int, ...]
    extra: Any = None


def inference_stream(
    predict: Callable[[Sequence[np.ndarray], int], Iterable[_Prediction]],
    count: int,
    read: Callable[[int], SquareImage],
    finish: Callable[[int, _Prediction, SquareImage], _Result],
    *,
    batch_size: int,
) -> Generator[_Result | InputError]:
    """Predicts on `count` images; a few batches are in memory at any time.

    Args:
      predict: squares and batch size, as of `Predictor.square_maps` → one prediction per square.
      count: how many images; they go by index, from 0.
      read: index → the image. Called in threads, ahead of the device.
      finish: index, prediction and image → a result. Called in threads, behind the device.
      batch_size: how many images the network takes at once.

    Yields:
      For each image, in order, the result, or the InputError that `read` or `finish` raised. Close the generator if it
      may not be exhausted.

    Raises:
      InputError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: must be at least 1, not {batch_size}")
    batch_size = min(batch_size, max(count, 1))
    threads = min(8, usable_cores())
    pool = ThreadPoolExecutor(threads, thread_name_prefix="purinet")

    def complete(predicted: tuple[int, SquareImage | InputError, Any]) -> _Result | InputError:
        index, image, prediction = predicted
        return image if isinstance(image, InputError) else finish(index, prediction, image)

    try:
        images = in_order(lambda index: pool.submit(_attempt, read, index), range(count), 2 * batch_size + threads)
        pairs = _with_predictions(predict, images, batch_size)
        yield from in_order(lambda pair: pool.submit(_attempt, complete, pair), pairs, batch_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(function: Callable[..., _Result], *arguments: Any) -> _Result | InputError:
    try:
        return function(*arguments)
    except InputError as error:
        return error


def _with_predictions(
    predict: Callable[[Sequence[np.ndarray], int], Iterable[Any]],
    images: Iterator[SquareImage | InputError],
    batch_size: int,
) -> Iterator[tuple[int, SquareImage | InputError, Any]]:
    """Yields each image with its index and prediction; an error, in an image's position, has none."""
    index = itertools.count()
    while batch := list(itertools.islice(images, batch_size)):
        squares = [image.square for image in batch if isinstance(image, SquareImage)]
        predictions = iter(predict(squares, batch_size) if squares else ())
        for image in batch:
            yield next(index), image, next(predictions) if isinstance(image, SquareImage) else None
        batch.clear()  # so that its images are not in memory while the next are read


def checked_size(size: int) -> int:
    """Returns the side of a square. Raises InputError if it is not positive, or larger than an image may be."""
    if size < 1:
        raise InputError(f"size: must be at least 1, not {size}")
    if size**2 > PIXEL_LIMIT:
        raise InputError(f"size: must be at most {math.isqrt(PIXEL_LIMIT):,}, not {size:,}")
    return size
