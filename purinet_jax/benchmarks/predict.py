"""What somebody waits for who runs `purinet predict` with the weights of the package: the network alone, the first
picture of a new process, and a folder of pictures from JPEG files to PNG files. Processes are whole ones, from the
command line on.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from purinet_jax.benchmarks.machine import describe_machine, milliseconds, peak_memory


def benchmark_predict(*, size: int = 320, images: int = 300, repeats: int = 7) -> dict[str, Any]:
    """Times `purinet predict` on generated photographs of 400×300 pixels.

    Args:
      size: side of the square that images are squashed to, pixels.
      images: how many files the folder holds.
      repeats: timed runs of the network alone; a third as many of the whole process.

    Returns:
      JSON values: `network` (median milliseconds an image, its inverse in images per second, peak memory of the
      process), `first_picture_s` (a whole process, medians: `without_cache`, a compilation cache that is empty, and
      `with_cache`, one that is not), and `folder` (seconds for the whole process with a cache, images per second).
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("measuring the network …", file=sys.stderr, flush=True)
        network = pool.apply(_network, (size, repeats))
    machine = network.pop("machine")
    with tempfile.TemporaryDirectory() as scratch:
        folder = _write_pictures(Path(scratch) / "pictures", images)
        first = min(folder.iterdir())
        few = max(1, repeats // 3)
        print("measuring the first picture …", file=sys.stderr, flush=True)
        cold = [_run(first, size, Path(scratch), f"cold{turn}") for turn in range(few)]
        warm = [_run(first, size, Path(scratch), "cold0") for _ in range(few)]
        print(f"measuring a folder of {images} …", file=sys.stderr, flush=True)
        whole = [_run(folder, size, Path(scratch), "cold0") for _ in range(few)]
    return {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "settings": {"size": size, "images": images, "repeats": repeats},
        "network": network,
        "first_picture_s": {
            "without_cache": round(statistics.median(cold), 2),
            "with_cache": round(statistics.median(warm), 2),
        },
        "folder": {
            "seconds": round(statistics.median(whole), 2),
            "images_per_second": round(images / statistics.median(whole), 1),
        },
    }


def _network(size: int, repeats: int) -> dict[str, Any]:
    """The network alone, in a fresh process: one image at a time, from uint8 pixels to the map."""
    import jax

    from purinet_jax.predict import load, saliency_maps

    predictor = load(size=size)
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)

    def run() -> None:
        jax.block_until_ready(saliency_maps(predictor.model, predictor.variables, image))

    def run_ten() -> None:  # are one timing: a single run is of the order of the clock's disturbances
        for _ in range(10):
            run()

    run_ten()
    times = [milliseconds(run_ten) / 10 for _ in range(repeats)]
    median = statistics.median(times)
    return {
        "median_ms": round(median, 2),
        "minimum_ms": round(min(times), 2),
        "images_per_second": round(1000 / median, 1),
        **peak_memory(jax.devices()[0]),
        "machine": {**describe_machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__},
    }


def _write_pictures(folder: Path, count: int) -> Path:
    from PIL import Image

    from purinet_jax.data.synthetic import draw_example

    folder.mkdir()
    # A few drawings make them all: what a picture shows changes nothing, and drawing is slow.
    drawings = [draw_example(np.random.default_rng(seed), (300, 400))[0] for seed in range(min(count, 10))]
    for index in range(count):
        Image.fromarray(drawings[index % len(drawings)]).save(folder / f"{index:05}.jpg", quality=90)
    return folder


def _run(source: Path, size: int, scratch: Path, cache: str) -> float:
    """Seconds that one process of `purinet predict` takes; `cache` names the folder of compiled programs."""
    command = [sys.executable, "-m", "purinet_jax.cli", "predict", str(source), "--output", str(scratch / "maps")]
    command += ["--overwrite", "--quiet", "--size", str(size)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(scratch / cache)}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
