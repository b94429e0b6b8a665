"""What a user of `purinet predict` waits for with the package's network: one forward pass, the first image of a new
process, a folder of images, and a very large one, from JPEG files to PNG files.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from purinet_jax.benchmarks.machine import heading, in_process, milliseconds, peak_memory, peak_mib, say
from purinet_jax.interrupts import temporary_paths


def benchmark_predict(*, size: int, images: int = 300, large_side: int = 10_000, repeats: int = 7) -> dict[str, Any]:
    """Times `purinet predict` on generated photos of 400×300 pixels.

    Args:
      size: side of the square that images are resized to, pixels.
      images: how many files the folder holds.
      large_side: side of the large square image, pixels.
      repeats: timed runs of the network alone; a third as many of entire processes.

    Returns:
      JSON values: `network` (milliseconds and images per second of the forward pass, peak memory of the process),
      `first_image_s` (an entire process, `without_cache` and `with_cache` of compiled programs), `folder` (an entire
      process with a cache) and `large_cutout` (an entire process that cuts the object out of the large image).
    """
    result = heading({"size": size, "images": images, "repeats": repeats})
    say("measuring the network")
    result["network"] = in_process(_network, size, repeats)
    with tempfile.TemporaryDirectory() as scratch:
        temporary_paths.add(scratch)
        folder, large = Path(scratch) / "images", Path(scratch) / "large.jpg"
        _write_images(folder, images)
        first = min(folder.iterdir())
        few = max(1, repeats // 3)
        say("measuring the first image")
        cold = [_predict(first, size, Path(scratch), f"cache{turn}") for turn in range(few)]
        warm = [_predict(first, size, Path(scratch)) for _ in range(few)]
        say(f"measuring a folder of {images}")
        runs = [_predict(folder, size, Path(scratch)) for _ in range(few)]
        say(f"measuring an image of {large_side}×{large_side}")
        Image.open(first).resize((large_side, large_side)).save(large, quality=90)
        seconds, memory = _predict(large, size, Path(scratch), "cache0", "--output-kind", "cutout")
    temporary_paths.discard(scratch)
    result["first_image_s"] = {"without_cache": _median_seconds(cold), "with_cache": _median_seconds(warm)}
    result["folder"] = {
        "seconds": _median_seconds(runs),
        "images_per_second": round(images / _median_seconds(runs), 2),
        "peak_memory_mib": max(memory for _, memory in runs),
    }
    return {**result, "large_cutout": {"seconds": round(seconds, 2), "peak_memory_mib": memory}}


def _network(size: int, repeats: int) -> dict[str, Any]:
    """The network alone, one image at a time, from uint8 pixels to the map."""
    import jax

    from purinet_jax.prediction.predictor import load

    predictor = load(size=size)
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)

    def run_ten() -> None:  # as one timing: a single run is too short for the clock
        for _ in range(10):
            predictor.square_maps([image], 1)

    run_ten()
    times = [milliseconds(run_ten) / 10 for _ in range(repeats)]
    median = statistics.median(times)
    return {
        "median_ms": round(median, 2),
        "minimum_ms": round(min(times), 2),
        "images_per_second": round(1000 / median, 1),
        **peak_memory(jax.devices()[0]),
    }


def _write_images(folder: Path, count: int) -> None:
    from purinet_jax.data.synthetic import draw_example

    folder.mkdir()
    # Ten make them all: speed does not depend on what an image shows, and drawing is slow.
    drawings = [draw_example(np.random.default_rng(seed), (300, 400))[0] for seed in range(min(count, 10))]
    for index in range(count):
        Image.fromarray(drawings[index % len(drawings)]).save(folder / f"{index:05}.jpg", quality=90)


def _median_seconds(runs: list[tuple[float, int]]) -> float:
    return round(statistics.median(seconds for seconds, _ in runs), 2)


def _predict(source: Path, size: int, scratch: Path, cache: str = "cache0", *options: str) -> tuple[float, int]:
    """Seconds and peak MiB of one process of `purinet predict`; `cache` names its folder of compiled programs."""
    command = [sys.executable, "-m", "purinet_jax.commands.main", "predict", str(source), "--quiet", "--overwrite"]
    command += ["--output", str(scratch / "maps"), "--size", str(size), *options]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(scratch / cache)}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        _, status, usage = os.wait4(process.pid, 0)  # unlike subprocess, knows this process's own peak
    except BaseException:
        process.kill()
        process.wait()
        raise
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, peak_mib(usage)
