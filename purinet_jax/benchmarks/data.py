"""How fast the input pipeline feeds the train step, beside the least that any pipeline must do: decoding with Pillow
and resizing, in as many processes as the pipeline has threads. Both are timed in turn, since a machine's own speed
drifts.
"""

import io
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from purinet_jax.benchmarks.machine import describe_machine

_BATCH = 16


def benchmark_data(data: str | Path, *, size: int = 320, images: int = 960, repeats: int = 3) -> dict[str, Any]:
    """Measures the released augmentation's throughput with one and with two workers.

    Args:
      data: pairs, as `open_pairs` takes them; superpixels are not read.
      size: side of the squares, pixels.
      images: how many pairs each timing takes.
      repeats: timings of each, in turn.

    Returns:
      JSON values: images (with their masks) per second, medians, by number of workers: `pipeline`, `pillow` (bare
      decoding and resizing in as many processes) and `ratio`, the median over turns; `first_batch_s`, seconds from
      opening the data set to the first batch in a process that has imported the package, by number of workers.

    Raises:
      InputError: the data set cannot be used.
    """
    from purinet_jax.data import open_pairs, training_batches

    pairs = open_pairs(data)
    batches = -(-images // _BATCH)
    results: dict[str, Any] = {}
    for workers in (1, 2):
        print(f"measuring {workers} worker{'s' if workers > 1 else ''} …", file=sys.stderr, flush=True)
        shares = [list(range(worker, batches * _BATCH, workers)) for worker in range(workers)]
        with (
            _processes(workers) as pool,
            training_batches(pairs, batch_size=_BATCH, size=size, seed=0, workers=workers) as reader,
        ):
            list(pool.map(_decode_and_resize, [(pairs, size, share[:_BATCH]) for share in shares]))
            pipeline, pillow = [], []
            for _ in range(repeats):
                # Bare first: the pipeline's threads have filled their queue by then and wait.
                start = time.perf_counter()
                list(pool.map(_decode_and_resize, [(pairs, size, share) for share in shares]))
                pillow.append(batches * _BATCH / (time.perf_counter() - start))
                for _ in range(10):  # what was read ahead is not the pipeline's speed
                    next(reader)
                start = time.perf_counter()
                for _ in range(batches):
                    next(reader)
                pipeline.append(batches * _BATCH / (time.perf_counter() - start))
        results[str(workers)] = {
            "pipeline": round(statistics.median(pipeline), 1),
            "pillow": round(statistics.median(pillow), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(pipeline, pillow, strict=True)), 3),
        }
    first = {}
    for workers in (0, 1, 2):
        with _processes(1) as pool:
            first[str(workers)] = round(pool.submit(_first_batch, data, size, workers).result(), 2)
    return {
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": {"data": str(data), "size": size, "images": batches * _BATCH, "repeats": repeats},
        "images_per_second": results,
        "first_batch_s": first,
    }


def _processes(count: int) -> ProcessPoolExecutor:
    """Fresh processes, which may start workers of their own (those of `multiprocessing.Pool` may not)."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


def _decode_and_resize(job: tuple[Any, int, list[int]]) -> None:
    from PIL import Image

    pairs, size, indices = job
    for index in indices:
        index %= len(pairs)
        for member, mode, how in (
            (pairs.images[index], "RGB", Image.Resampling.BILINEAR),
            (pairs.masks[index], "L", Image.Resampling.NEAREST),
        ):
            with Image.open(io.BytesIO(pairs.storage.read(member))) as image:
                image.convert(mode).resize((size, size), how)


def _first_batch(data: str | Path, size: int, workers: int) -> float:
    """Seconds, in a fresh process."""
    from purinet_jax.data import open_pairs, training_batches

    start = time.perf_counter()
    with training_batches(open_pairs(data), batch_size=_BATCH, size=size, seed=0, workers=workers) as reader:
        next(reader)
        return time.perf_counter() - start
