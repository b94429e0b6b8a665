"""Measures the input pipeline against bare decoding and resizing with Pillow; prints JSON.

    python benchmarks/data.py DUTS-TR.zip > data.json

Pillow runs in as many processes as the pipeline has threads. Both are timed in turn, because a machine's speed drifts.
"""

import argparse
import io
import json
import statistics
import time

from PIL import Image

from purinet_jax.benchmarks.machine import heading, in_process, say
from purinet_jax.data import Pairs, open_pairs, training_batches
from purinet_jax.memory import keep_freed_memory
from purinet_jax.workers import worker_processes

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="pairs of image and mask, a folder or zip")
    parser.add_argument("--size", type=int, default=320, help="side of the squares, pixels (default 320)")
    parser.add_argument("--images", type=int, default=960, help="pairs that each timing takes (default 960)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each, in turn (default 7)")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `purinet train` does
    result = heading(vars(arguments), uses_jax=False) | {"images_per_second": {}, "first_batch_s": {}}
    for workers in (1, 2):
        say(f"measuring {workers} worker{'s' if workers > 1 else ''}")
        result["images_per_second"][workers] = throughput(arguments, workers)
    for workers in (0, 1, 2):
        seconds = in_process(first_batch, arguments.data, arguments.size, workers)
        result["first_batch_s"][workers] = round(seconds, 2)
    print(json.dumps(result, indent=2))


def throughput(arguments: argparse.Namespace, workers: int) -> dict[str, float]:
    """Images (with their masks) per second of both, medians, and the median of their ratios."""
    pairs, size, batches = open_pairs(arguments.data), arguments.size, -(-arguments.images // BATCH)
    shares = [list(range(worker, batches * BATCH, workers)) for worker in range(workers)]
    with (
        worker_processes(workers, decode_and_resize, (pairs, size)) as mapped,
        training_batches(pairs, batch_size=BATCH, size=size, seed=0, workers=workers) as reader,
    ):
        list(mapped([share[:BATCH] for share in shares]))
        next(reader)
        pipeline, pillow = [], []
        for _ in range(arguments.repeats):
            time.sleep(1)  # until the pipeline's threads have filled their queue, and wait
            start = time.perf_counter()
            list(mapped(shares))
            pillow.append(batches * BATCH / (time.perf_counter() - start))
            for _ in range(10):  # batches that were read ahead are not the pipeline's speed
                next(reader)
            start = time.perf_counter()
            for _ in range(batches):
                next(reader)
            pipeline.append(batches * BATCH / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(pipeline, pillow, strict=True))
    rates = {"pipeline": round(statistics.median(pipeline), 1), "pillow": round(statistics.median(pillow), 1)}
    return {**rates, "ratio": round(ratio, 3)}


def decode_and_resize(settings: tuple[Pairs, int], indices: list[int]) -> None:
    pairs, size = settings
    for index in indices:
        index %= len(pairs)
        for member, mode, how in (
            (pairs.images[index], "RGB", Image.Resampling.BILINEAR),
            (pairs.masks[index], "L", Image.Resampling.NEAREST),
        ):
            with Image.open(io.BytesIO(pairs.storage.read(member))) as image:
                image.convert(mode).resize((size, size), how)


def first_batch(data: str, size: int, workers: int) -> float:
    """Seconds from opening the data set to the first batch."""
    start = time.perf_counter()
    with training_batches(open_pairs(data), batch_size=BATCH, size=size, seed=0, workers=workers) as reader:
        next(reader)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
