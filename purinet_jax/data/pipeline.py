"""From a data set to batches: grain shuffles, repeats, and reads ahead in threads. (Decoding and resampling let go of
Python's lock; processes, which must hand each batch over, gave half as much per worker.) Every example's augmentation
follows from seed, epoch and example alone, so the same bytes come out for any number of workers, and training resumes
at any batch by its number.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from purinet_jax.data.augment import augment, resize_image, resize_labels
from purinet_jax.data.pairs import Example, Pairs
from purinet_jax.errors import InputError

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """An iterator over batches that owns threads; `close` (or `with`) stops them."""

    def __init__(self, iterator: Any) -> None:
        # Held in a list that the finaliser empties: grain's iterators complain when they are left for the
        # interpreter's exit to collect.
        self._held = [iterator]
        self._finalise = weakref.finalize(self, _stop, self._held)

    def __next__(self) -> Batch:
        if not self._held:
            raise StopIteration
        try:
            return next(self._held[0])
        except BaseException:
            # After an error, the end, or Ctrl-C nothing follows; idle threads would outlive the traceback.
            self.close()
            raise

    def close(self) -> None:
        """Stops the threads; what they had prepared is dropped. May be called twice."""
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
    """An endless sequence of augmented batches, shuffled anew each epoch; batches run on across epochs.

    Args:
      pairs: the data set.
      batch_size: examples per batch and shard.
      size: side of the square that examples are resized to, pixels.
      seed: 0 to 2**32 - 1; the sequence follows from it.
      start: begins at this batch of the sequence, counted from 0.
      workers: threads that read ahead; 0 for none: each batch is made when it is asked for.
      flip: probability of mirroring, 0 to 1.
      rotate: turns by up to this many degrees to either side.
      crop: the least share of an image's area that a random crop keeps; 1 for no crops.
      jitter: the most that brightness, contrast and saturation change, 0 to 1; 0 for no change.
      sizes: sides of which each batch gets one, drawn by its number, in place of `size`; empty for `size`
        always. Each is compiled for once.
      max_regions: superpixel labels must be below this; None for no bound.
      shard: which share of each global batch to read, 0 to `shards` - 1; on several hosts
        `jax.process_index()`.
      shards: number of shares; `jax.process_count()`. The shares of batch n together are batch n of a single
        host with `shards` times the batch size.
      prefetch: batches prepared ahead.

    Returns:
      Batches of `image` uint8 [batch, size, size, 3], `mask` uint8 [batch, size, size, 1] of 0 and 1, `index`
      int32 [batch] in the data set, and, if the data set has them, `superpixels` int32 [batch, size, size].

    Raises:
      InputError: a setting is out of range or the data set is empty; from the iterator, a file cannot be
        used.
    """
    import grain

    if not 0 <= seed < 2**32:
        raise InputError(f"seed: must be from 0 to 2**32 - 1, not {seed}")
    if start < 0:
        raise InputError(f"start: must not be negative, not {start}")
    if not 0 <= shard < shards:
        raise InputError(f"shard: must be from 0 to {shards - 1}, not {shard}")
    if not 0 < crop <= 1:
        raise InputError(f"crop: must be above 0 and at most 1, not {crop}")
    if not 0 <= jitter <= 1:
        raise InputError(f"jitter: must be from 0 to 1, not {jitter}")
    sizes = tuple(sizes) or (size,)
    for side in sizes:
        _check_common(pairs, batch_size, side, workers, prefetch)
    make = _Augmented(pairs, sizes, batch_size, shard, shards, start, seed, flip, rotate, crop, jitter, max_regions)
    # Grain deals in indices, and a batch is made in one go: reading example by example through grain, and stacking,
    # took a quarter as long again. Shares are cut from single indices, after every position has its randomness: no
    # host's share depends on how many there are.
    indices = grain.MapDataset.range(len(pairs)).seed(seed).shuffle().repeat()
    batches = indices[shard::shards].batch(batch_size, drop_remainder=True)[start:].map_with_index(make)
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
    """One pass over a data set in its order, resized and not augmented.

    Args:
      pairs: the data set.
      batch_size: examples per batch.
      size: side of the square that examples are resized to, pixels.
      workers: threads that read ahead; 0 for none: each batch is made when it is asked for.
      max_regions: superpixel labels must be below this; None for no bound.
      prefetch: batches prepared ahead.

    Returns:
      Batches as `training_batches` gives them, with `valid` bool [batch] as well. All are full: the last one
      is filled up with zeros, where `valid` is false and `index` is -1.

    Raises:
      InputError: a setting is out of range or the data set is empty; from the iterator, a file cannot be
        used.
    """
    import grain

    _check_common(pairs, batch_size, size, workers, prefetch)
    dataset = grain.MapDataset.source(pairs).map(_Resized(pairs, size, max_regions))
    return _read_ahead(dataset.batch(batch_size, batch_fn=_Padded(batch_size)), workers, prefetch)


@dataclass(frozen=True)
class _Augmented:
    """Makes a batch of training."""

    pairs: Pairs
    sizes: tuple[int, ...]
    batch_size: int
    shard: int
    shards: int
    start: int
    seed: int
    flip: float
    rotate: float
    crop: float
    jitter: float
    max_regions: int | None

    def __call__(self, number: int, indices: np.ndarray) -> Batch:
        """Batch `start` + `number` of the examples at these indices, [batch_size]."""
        number += self.start
        size = self.sizes[0]
        if len(self.sizes) > 1:  # one for all examples of a batch, on every host
            size = int(np.random.default_rng((self.seed, number)).choice(self.sizes))
        batch: Batch = {
            "image": np.empty((self.batch_size, size, size, 3), np.uint8),
            "mask": np.empty((self.batch_size, size, size, 1), np.uint8),
            "index": indices.astype(np.int32),
        }
        if self.pairs.superpixels is not None:
            batch["superpixels"] = np.empty((self.batch_size, size, size), np.int32)
        for place, index in enumerate(indices.tolist()):
            position = (number * self.batch_size + place) * self.shards + self.shard
            example = self.pairs[index]
            _check_labels(self.pairs, example, self.max_regions)
            _, mask, superpixels = augment(
                example["image"],
                example["mask"],
                example.get("superpixels"),
                size=size,
                generator=np.random.default_rng((self.seed, position // len(self.pairs), index)),
                flip=self.flip,
                rotate=self.rotate,
                crop=self.crop,
                jitter=self.jitter,
                out=batch["image"][place],
            )
            batch["mask"][place, :, :, 0] = mask
            if superpixels is not None:
                batch["superpixels"][place] = superpixels
        return batch


@dataclass(frozen=True)
class _Resized:
    """What happens to one example of evaluation."""

    pairs: Pairs
    size: int
    max_regions: int | None

    def __call__(self, example: Example) -> Batch:
        _check_labels(self.pairs, example, self.max_regions)
        superpixels = example.get("superpixels")
        if superpixels is not None:
            superpixels = resize_labels(superpixels, self.size, self.size)
        image = resize_image(example["image"], self.size, self.size)
        mask = resize_labels(example["mask"], self.size, self.size)
        parts: dict[str, Any] = {"image": image, "mask": mask[:, :, None], "index": np.int32(example["index"])}
        if superpixels is not None:
            parts["superpixels"] = superpixels
        return parts


@dataclass(frozen=True)
class _Padded:
    """Stacks a batch and fills it up."""

    batch_size: int

    def __call__(self, examples: Sequence[Batch]) -> Batch:
        batch = _stack(examples)
        missing = self.batch_size - len(examples)
        batch["valid"] = np.ones(len(examples), bool)
        if missing:
            batch = {
                key: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
                for key, value in batch.items()
            }
            batch["index"][-missing:] = -1
        return batch


def _stack(examples: Sequence[Batch]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _check_labels(pairs: Pairs, example: Example, max_regions: int | None) -> None:
    # On the device a label out of range would be dropped without a word, and the loss would be another one.
    if max_regions is not None and "superpixels" in example:
        highest = int(example["superpixels"].max())
        if highest >= max_regions:
            raise InputError(
                f"{pairs.image_path(example['index'])}: its superpixels reach label {highest}, "
                f"but max_regions {max_regions} allows 0 to {max_regions - 1}"
            )


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
