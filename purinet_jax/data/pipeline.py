"""Batches of a data set: grain shuffles, repeats, and reads ahead in threads.

Decoding and resampling release Python's lock; processes, which must copy each batch, gave half as much per worker.
Each example's augmentation depends only on seed, epoch and example, so any number of workers gives the same bytes, and
training resumes at any batch.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from purinet_jax.data.augment import augment, resize_image, resize_labels
from purinet_jax.data.images import PIXEL_LIMIT
from purinet_jax.data.pairs import Example, Pairs
from purinet_jax.errors import InputError

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """An iterator over batches that owns threads; `close` (or `with`) stops them."""

    def __init__(self, iterator: Any) -> None:
        # In a list that the finaliser empties, because grain's iterators warn if the interpreter's exit collects them.
        self._held = [iterator]
        self._finalise = weakref.finalize(self, _stop, self._held)

    def __next__(self) -> Batch:
        if not self._held:
            raise StopIteration
        try:
            return next(self._held[0])
        except BaseException:
            # Otherwise idle threads would outlive an error, the end, or Ctrl-C.
            self.close()
            raise

    def close(self) -> None:
        """Stops the threads and drops the batches they have prepared. May be called twice."""
        self._finalise()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _stop(held: list[Any]) -> None:
    while held:
        held.pop().close()


def check_augmentation(
    seed: int, size: int, flip: float, rotate: float, crop: float, jitter: float, sizes: Sequence[int]
) -> None:
    """Raises InputError if one of these arguments of `training_batches` is out of range."""
    largest = math.isqrt(PIXEL_LIMIT)
    for name, values, valid, bounds in (
        ("seed", [seed], lambda x: 0 <= x < 2**32, "from 0 to 2**32 - 1"),
        ("size", [size], lambda x: 1 <= x <= largest, f"from 1 to {largest}"),
        ("sizes", sizes, lambda x: 1 <= x <= largest, f"from 1 to {largest}"),
        ("flip", [flip], lambda x: 0 <= x <= 1, "from 0 to 1"),
        ("rotate", [rotate], lambda x: 0 <= x <= 180, "from 0 to 180"),
        ("crop", [crop], lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("jitter", [jitter], lambda x: 0 <= x <= 1, "from 0 to 1"),
    ):
        for value in values:
            if not valid(value):
                raise InputError(f"{name}: must be {bounds}, not {value}")


def training_batches(
    pairs: Pairs,
    *,
    batch_size: int,
    size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    flip: float = 0.5,
    rotate: float = 10.0,
    crop: float = 1.0,
    jitter: float = 0.0,
    sizes: Sequence[int] = (),
    max_regions: int | None = None,
    shard: int = 0,
    shards: int = 1,
    prefetch: int = 4,
) -> Batches:
    """Returns an endless sequence of augmented batches, shuffled again each epoch; batches run on across epochs.

    Args:
      pairs: the data set.
      batch_size: examples per batch and shard.
      size: side of the square that examples are resized to, pixels.
      seed: 0 to 2**32 - 1; it determines the sequence.
      start: the index of the batch of the sequence to begin with.
      workers: threads that read ahead; with 0, each batch is made when it is requested.
      flip: probability of mirroring, 0 to 1.
      rotate: the largest rotation to either side, degrees.
      crop: the least share of an image's area that a random crop keeps; 1 for no crops.
      jitter: the most that brightness, contrast and saturation change, 0 to 1; 0 for no change.
      sizes: sides of which each batch gets a random one, instead of `size`; the train step compiles once for each.
      max_regions: superpixel labels must be below this; None for no bound.
      shard: which share of each global batch to read, 0 to `shards` - 1; on several hosts `jax.process_index()`.
      shards: number of shares; `jax.process_count()`. The shares of batch n, one after the other, are batch n of a
        single host with `shards` times the batch size.
      prefetch: batches prepared ahead.

    Returns:
      Batches of `image` uint8 [batch, size, size, 3], `mask` uint8 [batch, size, size, 1] of 0 and 1, `index`
      int32 [batch] in the data set, and, if the data set has them, `superpixels` int32 [batch, size, size].

    Raises:
      InputError: a setting is out of range or the data set is empty; from the iterator, a file cannot be used.
    """
    import grain

    check_augmentation(seed, size, flip, rotate, crop, jitter, sizes)
    for name, value, valid, bounds in (
        ("start", start, start >= 0, "at least 0"),
        ("shard", shard, 0 <= shard < shards, f"from 0 to {shards - 1}"),
    ):
        if not valid:
            raise InputError(f"{name}: must be {bounds}, not {value}")
    sizes = tuple(sizes) or (size,)
    _check_common(pairs, batch_size, size, workers, prefetch)

    def make(batch_index: int, indices: np.ndarray) -> Batch:
        batch_index += start
        indices = indices[shard * batch_size : (shard + 1) * batch_size]
        side = sizes[0]
        if len(sizes) > 1:  # the same on every host
            side = int(np.random.default_rng((seed, batch_index)).choice(sizes))
        batch = _zeros(pairs, batch_size, side)
        for row, index in enumerate(indices.tolist()):
            position = (batch_index * shards + shard) * batch_size + row
            example = _read(pairs, index, max_regions)
            _, mask, superpixels = augment(
                example["image"],
                example["mask"],
                example.get("superpixels"),
                size=side,
                generator=np.random.default_rng((seed, position // len(pairs), index)),
                flip=flip,
                rotate=rotate,
                crop=crop,
                jitter=jitter,
                out=batch["image"][row],
            )
            batch["mask"][row, :, :, 0], batch["index"][row] = mask, index
            if superpixels is not None:
                batch["superpixels"][row] = superpixels
        return batch

    # Grain handles indices only, because reading single examples through it and stacking them takes 25 % longer.
    # Shares are taken from whole batches, as devices' are, so that no image depends on how many hosts there are.
    indices = grain.MapDataset.range(len(pairs)).seed(seed).shuffle().repeat()
    batches = indices.batch(batch_size * shards, drop_remainder=True)[start:].map_with_index(make)
    return _read_ahead(batches, workers, prefetch)


def evaluation_batches(
    pairs: Pairs,
    *,
    batch_size: int,
    size: int,
    workers: int = 0,
    max_regions: int | None = None,
    prefetch: int = 4,
) -> Batches:
    """Returns one pass over a data set in its order, resized and not augmented.

    Args:
      pairs: the data set.
      batch_size: examples per batch.
      size: side of the square that examples are resized to, pixels.
      workers: threads that read ahead; with 0, each batch is made when it is requested.
      max_regions: superpixel labels must be below this; None for no bound.
      prefetch: batches prepared ahead.

    Returns:
      Batches as of `training_batches`, with `valid` bool [batch] as well. All are full: the last one is filled up
      with zeros, where `valid` is false and `index` is -1.

    Raises:
      InputError: a setting is out of range or the data set is empty; from the iterator, a file cannot be used.
    """
    import grain

    _check_common(pairs, batch_size, size, workers, prefetch)

    def make(indices: np.ndarray) -> Batch:
        batch = _zeros(pairs, batch_size, size)
        batch["valid"] = np.arange(batch_size) < len(indices)
        batch["index"][:] = -1
        for row, index in enumerate(indices.tolist()):
            example = _read(pairs, index, max_regions)
            batch["image"][row] = resize_image(example["image"], size, size)
            batch["mask"][row, :, :, 0] = resize_labels(example["mask"], size, size)
            batch["index"][row] = index
            if "superpixels" in example:
                batch["superpixels"][row] = resize_labels(example["superpixels"], size, size)
        return batch

    return _read_ahead(grain.MapDataset.range(len(pairs)).batch(batch_size).map(make), workers, prefetch)


def _zeros(pairs: Pairs, count: int, size: int) -> Batch:
    batch: Batch = {
        "image": np.zeros((count, size, size, 3), np.uint8),
        "mask": np.zeros((count, size, size, 1), np.uint8),
        "index": np.zeros(count, np.int32),
    }
    if pairs.superpixels is not None:
        batch["superpixels"] = np.zeros((count, size, size), np.int32)
    return batch


def _read(pairs: Pairs, index: int, max_regions: int | None) -> Example:
    example = pairs[index]
    if "superpixels" in example:
        pairs.check_regions(index, example["superpixels"], max_regions)
    return example


def _check_common(pairs: Pairs, batch_size: int, size: int, workers: int, prefetch: int) -> None:
    if len(pairs) == 0:
        raise InputError(f"{pairs.path}: no pairs are left to read")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("size", size, 1),
        ("workers", workers, 0),
        ("prefetch", prefetch, 1),
    ):
        if value < least:
            raise InputError(f"{name}: must be at least {least}, not {value}")


def _read_ahead(dataset: Any, workers: int, prefetch: int) -> Batches:
    import grain

    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=prefetch if workers else 0)
    return Batches(iter(dataset.to_iter_dataset(options)))
