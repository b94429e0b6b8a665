"""What JAX runs on, in words, so that a GPU which is silently not used is seen before hours are spent."""

import os
from collections import Counter

from purinet_jax.errors import InputError

INSTALL = {"gpu": "pip install 'purinet_jax[cuda]'", "tpu": "pip install 'purinet_jax[tpu]'"}
"""How to install what JAX needs, by the platform it is for."""


def usable_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_cpu() -> str:
    """The CPU, in words: "CPU, 2 cores". JAX is not asked."""
    cores = usable_cores()
    return f"CPU, {cores} core{'s' if cores > 1 else ''}"


def describe_devices(required: str | None = None) -> str:
    """All devices that JAX runs on, in words: "2 × NVIDIA H200", or `describe_cpu`.

    Args:
      required: "gpu" or "tpu", where nothing else will do.

    Raises:
      InputError: JAX has not what is required, or cannot be started.
    """
    import jax

    try:
        platform, devices = jax.default_backend(), jax.devices()
    except RuntimeError as error:  # JAX_PLATFORMS names what is not there
        reason = str(error).splitlines()[0]
        raise InputError(f"JAX cannot be started: {reason}{_hint(required)}") from error
    kinds = Counter(device.device_kind for device in devices)
    found = describe_cpu() if platform == "cpu" else ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
    if required is not None and platform != required:
        raise InputError(f"--require {required}: JAX found only {found}{_hint(required)}")
    return found


def _hint(required: str | None) -> str:
    return "" if required is None else f"; for a {required.upper()}: {INSTALL[required]}"
