"""What benchmarks share: a clock, peak memory, fresh processes, and the network and machine that the numbers are of."""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from purinet_jax.devices import usable_cores
from purinet_jax.errors import InputError
from purinet_jax.workers import worker_processes

if TYPE_CHECKING:  # imports JAX
    from purinet_jax.network.config import ModelConfig

_Result = TypeVar("_Result")


def milliseconds(run: Callable[[], Any]) -> float:
    """Returns how long one call takes."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def timings(run: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Returns the seconds of each of several calls, and the processor's seconds over all cores."""
    seconds, processor_seconds = [], []
    for _ in range(repeats):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        run()
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return seconds, processor_seconds


def in_process(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Returns the result of a module's function in a fresh process, whose peak memory and devices are its own."""
    with worker_processes(1, _call, function) as mapped:
        return next(mapped([arguments]))


def _call(function: Callable[..., _Result], arguments: tuple[Any, ...]) -> _Result:
    return function(*arguments)


def say(what: str) -> None:
    """Prints a line of progress on standard error."""
    print(f"{what} …", file=sys.stderr, flush=True)


def chosen_network(backbone: str | None, channels: int | None) -> "ModelConfig":
    """Returns the released decoder on a backbone, by default 128 channels wide, or without a backbone the package's
    default network. Raises InputError for channels without a backbone."""
    from purinet_jax.network.config import ModelConfig
    from purinet_jax.weights.shipped import NETWORKS, load_shipped

    if backbone is not None:
        return ModelConfig(backbone, channels or 128)
    if channels is not None:
        raise InputError("--channels: goes with --backbone")
    return ModelConfig.from_dict(load_shipped(NETWORKS[0]).config)


def heading(settings: Mapping[str, Any], *, uses_jax: bool = True) -> dict[str, Any]:
    """Returns what a result starts with: the machine, the date and the settings."""
    described = {**describe_machine(), **(in_process(describe_device) if uses_jax else {})}
    return {"machine": described, "date": time.strftime("%Y-%m-%d"), "settings": dict(settings)}


def describe_machine() -> dict[str, Any]:
    """Processor, its clock in MHz (null if unknown), cores, how many of them this process may use, Python's version."""
    # What Linux says of the first core comes last here, and so counts.
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    core = {key.strip(): value.strip() for key, colon, value in (x.partition(":") for x in reversed(lines)) if colon}
    clock = core.get("cpu MHz")
    return {
        "processor": core.get("model name") or platform.processor(),
        "clock_mhz": round(float(clock)) if clock else None,
        "cores": os.cpu_count(),
        "threads": usable_cores(),
        "python": platform.python_version(),
    }


def describe_device() -> dict[str, str]:
    """Returns the kind of the first device and JAX's version. Starts JAX, which may reserve the device's memory."""
    import jax

    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def peak_memory(device: Any = None) -> dict[str, int]:
    """Peak memory in MiB of this process and, given a JAX device with memory of its own, of the device."""
    memory = {"peak_memory_mib": peak_mib(resource.getrusage(resource.RUSAGE_SELF))}
    of_device = device.memory_stats() if device is not None else None
    if of_device and "peak_bytes_in_use" in of_device:
        memory["peak_device_memory_mib"] = of_device["peak_bytes_in_use"] // 2**20
    return memory


def peak_mib(usage: resource.struct_rusage) -> int:
    """The peak memory in a process's resource usage, in MiB; its unit depends on the system."""
    return usage.ru_maxrss // (2**10 if sys.platform == "linux" else 2**20)
