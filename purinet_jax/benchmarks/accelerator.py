"""Inference and train step on an accelerator, over batch sizes and precisions, relative to the rate of its matrix
products. Programs are compiled in several threads, ahead of being timed, because compiling takes most of the time.
"""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from purinet_jax.benchmarks.machine import heading, milliseconds, peak_memory, say
from purinet_jax.benchmarks.network import lower_train_step
from purinet_jax.devices import matrix_product_rate
from purinet_jax.files import one_line
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.flops import forward_flops, train_step_flops
from purinet_jax.network.inference import saliency_maps

PRECISIONS = {
    "float32": ("float32", "highest"),
    "tensorfloat32": ("float32", "tensorfloat32"),
    "bfloat16": ("bfloat16", "default"),
}
"""By name, what convolutions compute in and `jax_default_matmul_precision`."""


def benchmark_accelerator(
    config: ModelConfig, *, size: int, batches: Sequence[int], repeats: int, limit: float = 360.0
) -> dict[str, Any]:
    """Times the finest map and the train step (stage 3's losses, SGD) on the first device.

    Args:
      config: the network.
      size: side of the square images in pixels.
      batches: images at a time.
      repeats: timed runs of each.
      limit: seconds after which nothing more is started; rows that are left say `not_measured` and why.

    Returns:
      JSON values: `ceilings_tflops`, the rate of a matrix product by precision; `rows`, each with images per second,
      `share` of that rate, and the program's memory in MiB; and the process's peak memory.
    """
    end = time.monotonic() + limit
    result = heading({"model": config.to_dict(), "size": size, "repeats": repeats})
    flops = {
        "level1_inference": forward_flops(config.build(), size, finest_only=True),
        "train_step": train_step_flops(config.build(), size),
    }
    # Small batches first, so that the limit cuts off the large ones.
    wanted = [(batch_size, precision, kind) for batch_size in batches for precision in PRECISIONS for kind in flops]
    rates, rows = {}, []
    for precision, (dtype, products) in PRECISIONS.items():
        matrix_product_rate.cache_clear()
        with jax.default_matmul_precision(products):
            rates[precision] = matrix_product_rate(dtype)
    with ThreadPoolExecutor(8 if jax.default_backend() != "cpu" else 1) as pool:
        programs = [pool.submit(_compile, config, size, *each, end) for each in wanted]
        for (batch_size, precision, kind), program in zip(wanted, programs, strict=True):
            say(f"measuring {kind}, {precision}, batch {batch_size}")
            row: dict[str, Any] = {"kind": kind, "precision": precision, "batch_size": batch_size}
            try:
                seconds, memory = _time(*program.result(), repeats, end)
                row["images_per_second"] = round(batch_size / seconds, 2)
                row["ms"] = round(seconds * 1000, 2)
                row["share"] = round(flops[kind] * batch_size / seconds / rates[precision], 3)
                row["program_mib"] = memory
            except (TimeoutError, jax.errors.JaxRuntimeError) as error:  # the latter most likely out of memory
                row["not_measured"] = one_line(error)
            rows.append(row)
    result["gflop_per_image"] = {kind: round(number / 1e9, 2) for kind, number in flops.items()}
    result["ceilings_tflops"] = {precision: round(rate / 1e12, 3) for precision, rate in rates.items()}
    return {**result, "rows": rows, **peak_memory(jax.devices()[0])}


def _compile(
    config: ModelConfig, size: int, batch_size: int, precision: str, kind: str, end: float
) -> tuple[jax.stages.Lowered, jax.stages.Compiled]:
    _check_time(end)
    dtype, products = PRECISIONS[precision]
    model = config.build(dtype=jnp.dtype(dtype))
    with jax.default_matmul_precision(products):
        if kind == "train_step":
            lowered = lower_train_step(model, batch_size, size)
        else:
            variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
            images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
            lowered = saliency_maps.lower(model, dict(variables), images)
        return lowered, lowered.compile()


def _time(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, repeats: int, end: float) -> tuple[float, int]:
    """Median seconds of a program, and the MiB that it needs."""
    _check_time(end)
    # Speed does not depend on the values. Made here, so that programs which wait to be timed take no memory.
    (first, second), _ = jax.tree.map(
        lambda x: jnp.full(x.shape, 0.01 if jnp.issubdtype(x.dtype, jnp.floating) else 1, x.dtype), lowered.args_info
    )

    def run() -> None:
        nonlocal first
        result = jax.block_until_ready(compiled(first, second))
        if isinstance(result, tuple):  # a train step, which was given its state
            first = result[0]

    run()
    seconds = statistics.median(milliseconds(run) for _ in range(repeats)) / 1000
    analysis: Any = compiled.memory_analysis()
    memory = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return seconds, (memory - analysis.alias_size_in_bytes) // 2**20


def _check_time(end: float) -> None:
    if time.monotonic() > end:
        raise TimeoutError("the time was up")
