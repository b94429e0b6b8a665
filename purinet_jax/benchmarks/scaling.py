"""How the time of a train step grows with the batch and with the size of the images: t = a + b · batch · size²."""

import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

from purinet_jax.benchmarks.machine import describe_machine, in_process


def benchmark_scaling(
    *,
    backbone: str,
    channels: int,
    dtype: str,
    repeats: int,
    batches: Sequence[int] = (1, 2, 4, 8),
    sizes: Sequence[int] = (160, 224, 320),
) -> dict[str, Any]:
    """Times the train step for every batch and size, and fits a constant and a cost per pixel to it.

    Args:
      backbone, channels, dtype: as in `benchmark_network`.
      repeats: timed runs of each, of which the fastest counts.
      batches: images in a step.
      sizes: sides of the images in pixels.

    Returns:
      JSON values: `rows` with seconds, CPU seconds of the process (all cores; what other processes do hardly counts)
      and the fit's, in seconds and as a ratio; `fit`, of the CPU seconds on a CPU and of the seconds elsewhere.
    """
    import numpy as np

    settings = {"backbone": backbone, "channels": channels, "dtype": dtype, "repeats": repeats}
    rows = []
    for size in sizes:
        for batch_size in batches:
            print(f"measuring batch {batch_size} of {size}² …", file=sys.stderr, flush=True)
            rows.append(in_process(_measure, {**settings, "size": size, "batch_size": batch_size}))
    clock = "cpu_s" if rows[0].pop("platform") == "cpu" else "s"
    pixels = np.array([row["batch_size"] * row["size"] ** 2 for row in rows], float)
    times = np.array([row[clock] for row in rows])
    # relative errors count: each row is divided by its time
    design = np.stack([np.ones_like(pixels), pixels], 1) / times[:, None]
    (constant, per_pixel), *_ = np.linalg.lstsq(design, np.ones_like(times), rcond=None)
    for row, count, measured in zip(rows, pixels, times, strict=True):
        row.pop("platform", None)
        expected = constant + per_pixel * count
        row |= {"fit_s": round(float(expected), 4), "to_fit": round(float(measured / expected), 3)}
    fit = {"of": clock, "constant_s": float(constant), "s_per_megapixel": float(per_pixel * 1e6)}
    return {"machine": describe_machine(), "date": time.strftime("%Y-%m-%d"), "settings": settings, "fit": fit} | {
        "rows": rows
    }


def _measure(settings: dict[str, Any]) -> dict[str, Any]:
    """One row, in a fresh process."""
    import jax

    from purinet_jax.benchmarks.network import repeatable_train_step
    from purinet_jax.training.losses import Objective

    run = repeatable_train_step(settings, Objective())
    run()
    seconds, cpu_seconds = [], []
    for _ in range(settings["repeats"]):
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        run()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(_cpu_seconds() - cpu_start)
    return {
        "batch_size": settings["batch_size"],
        "size": settings["size"],
        "s": round(min(seconds), 4),
        "cpu_s": round(min(cpu_seconds), 4),
        "platform": jax.default_backend(),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
