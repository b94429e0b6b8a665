"""What somebody waits for who runs `purinet predict` with the weights of the package: the network alone, the first
picture of a new process, a folder of pictures, and a very large one, from JPEG files to PNG files. Processes are whole
ones, from the command line on.
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

from purinet_jax.benchmarks.machine import describe_machine, in_process, milliseconds, peak_memory


def benchmark_predict(
    *, size: int = 320, images: int = 300, large_side: int = 10_000, repeats: int = 7
) -> dict[str, Any]:
    """Times `purinet predict` on generated photographs of 400×300 pixels.

    Args:
      size: side of the square that images are squashed to, pixels.
      images: how many files the folder holds.
      large_side: side of the large picture, which is square, pixels.
      repeats: timed runs of the network alone; a third as many of the whole process.

    Returns:
      JSON values: `network` (median milliseconds an image, its inverse in images per second, peak memory of the
      process), `first_picture_s` (a whole process, medians: `without_cache`, a compilation cache that is empty, and
      `with_cache`, one that is not), `folder` (seconds for the whole process with a cache, images per second, its
      peak memory), and `large_cutout` (seconds and peak memory of a whole process that cuts the object out of the large
      picture).
    """
    print("measuring the network …", file=sys.stderr, flush=True)
    network = in_process(_network, size, repeats)
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
        print(f"measuring a picture of {large_side}×{large_side} …", file=sys.stderr, flush=True)
        large = Path(scratch) / "large.jpg"
        Image.open(first).resize((large_side, large_side)).save(large, quality=90)
        large_cutout = _run(large, size, Path(scratch), "cold0", "--output-kind", "cutout")
    return {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "settings": {"size": size, "images": images, "repeats": repeats},
        "network": network,
        "first_picture_s": {
            "without_cache": _median_seconds(cold),
            "with_cache": _median_seconds(warm),
        },
        "folder": {
            "seconds": _median_seconds(whole),
            "images_per_second": round(images / _median_seconds(whole), 2),
            "peak_memory_mib": max(memory for _, memory in whole),
        },
        "large_cutout": {"seconds": round(large_cutout[0], 2), "peak_memory_mib": large_cutout[1]},
    }


def _network(size: int, repeats: int) -> dict[str, Any]:
    """The network alone, in a fresh process: one image at a time, from uint8 pixels to the map."""
    import jax

    from purinet_jax.prediction.predictor import load

    predictor = load(size=size)
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)

    def run() -> None:
        predictor.square_maps([image], 1)

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
    from purinet_jax.data.synthetic import draw_example

    folder.mkdir()
    # A few drawings make them all: what a picture shows changes nothing, and drawing is slow.
    drawings = [draw_example(np.random.default_rng(seed), (300, 400))[0] for seed in range(min(count, 10))]
    for index in range(count):
        Image.fromarray(drawings[index % len(drawings)]).save(folder / f"{index:05}.jpg", quality=90)
    return folder


def _median_seconds(runs: list[tuple[float, int]]) -> float:
    return round(statistics.median(seconds for seconds, _ in runs), 2)


def _run(source: Path, size: int, scratch: Path, cache: str, *more: str) -> tuple[float, int]:
    """Seconds and peak memory in MiB of one process of `purinet predict`; `cache` names its folder of compiled
    programs."""
    command = [
        sys.executable,
        "-m",
        "purinet_jax.commands.main",
        "predict",
        str(source),
        "--output",
        str(scratch / "maps"),
        *more,
    ]
    command += ["--overwrite", "--quiet", "--size", str(size)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(scratch / cache)}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # knows this process' own peak, which subprocess does not
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, usage.ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)
