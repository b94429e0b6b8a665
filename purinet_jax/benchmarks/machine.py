"""What all benchmarks share: a clock, peak memory, and the machine that the numbers belong to."""

import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def milliseconds(run: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def in_process(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """What a function of a module gives in a fresh process, whose peak memory and devices are its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def describe_machine() -> dict[str, Any]:
    """Processor, its clock in MHz (null where it is not known), cores, how many of them this process may use, and
    Python's version, as JSON values."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    clock = _processor_says("cpu MHz")
    return {
        "processor": _processor_says("model name") or platform.processor(),
        "clock_mhz": round(float(clock)) if clock else None,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
    }


def matrix_product_gflops() -> float:
    """10⁹ operations a second of a 1536³ float32 matrix product, a multiply-add being two: the best of ten runs."""
    import jax
    import jax.numpy as jnp

    side = 1536
    matrix = jnp.ones((side, side))
    product = jax.jit(jnp.matmul)
    times = [milliseconds(lambda: jax.block_until_ready(product(matrix, matrix))) for _ in range(11)]
    return 2 * side**3 / (min(times[1:]) * 1e6)


def peak_memory(device: Any = None) -> dict[str, int]:
    """Peak memory of this process and, where a JAX device is given that has its own, of the device, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"peak_memory_mib": peak // (1024 if sys.platform == "linux" else 1024**2)}
    statistics_of_device = device.memory_stats() if device is not None else None
    if statistics_of_device and "peak_bytes_in_use" in statistics_of_device:
        memory["peak_device_memory_mib"] = statistics_of_device["peak_bytes_in_use"] // 1024**2
    return memory


def _processor_says(key: str) -> str | None:
    """What Linux tells about the first core under this key."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith(key))
    except (OSError, StopIteration):
        return None
