"""Describes the devices that JAX runs on, so that an unused GPU is noticed early."""

import functools
import os
import time
from collections import Counter

from purinet_jax.errors import InputError
from purinet_jax.files import reason

INSTALL = {"gpu": "pip install 'purinet_jax[cuda]'", "tpu": "pip install 'purinet_jax[tpu]'"}
"""How to install what JAX needs for a platform."""


def usable_cores() -> int:
    """Returns how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_cpu() -> str:
    """Returns a description of the CPU, "CPU, 2 cores", without starting JAX."""
    cores = usable_cores()
    return f"CPU, {cores} core{'s' if cores > 1 else ''}"


def describe_devices(required: str | None = None) -> str:
    """Returns a description of all devices that JAX runs on: "2 × NVIDIA H200", or `describe_cpu`.

    Args:
      required: "gpu" or "tpu" to accept nothing else.

    Raises:
      InputError: JAX does not run on what is required, or cannot be started.
    """
    import jax

    try:
        platform, devices = jax.default_backend(), jax.devices()
    except RuntimeError as error:  # JAX_PLATFORMS names a missing platform
        raise InputError(f"JAX cannot be started: {reason(error)}{_hint(required)}") from error
    kinds = Counter(device.device_kind for device in devices)
    found = describe_cpu() if platform == "cpu" else ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
    if required is not None and platform != required:
        raise InputError(f"--require {required}: JAX found only {found}{_hint(required)}")
    return found


@functools.cache
def matrix_product_rate(dtype: str) -> float:
    """Measures the floating-point operations per second of a large matrix product on this process's first device.

    Args:
      dtype: "float32" (in the precision that `jax_default_matmul_precision` asks for) or "bfloat16".
    """
    import jax
    import jax.numpy as jnp

    device = jax.local_devices()[0]
    side = 1024 if device.platform == "cpu" else 8192
    x = jax.device_put(jnp.full((side, side), 0.5, dtype), device)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def _hint(required: str | None) -> str:
    return "" if required is None else f"; for a {required.upper()}: {INSTALL[required]}"
