"""What an accelerator makes of the network: inference and train step over batch sizes and precisions, beside what its
matrix products reach. Programs are compiled several at a time, ahead of being timed: compiling takes most of the time.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from purinet_jax.benchmarks.machine import describe_machine, milliseconds, peak_memory
from purinet_jax.training.losses import Objective

PRECISIONS = {
    "float32": ("float32", "highest"),
    "tensorfloat32": ("float32", "tensorfloat32"),
    "bfloat16": ("bfloat16", "default"),
}
"""What is measured: convolutions' dtype, and `jax_default_matmul_precision`."""


def benchmark_accelerator(
    *,
    backbone: str = "resnet50",
    channels: int = 128,
    size: int = 320,
    batches: Sequence[int] = (1, 8, 32, 64),
    repeats: int = 5,
    limit: float = 420.0,
) -> dict[str, Any]:
    """Times the level-1 answer and the train step (stage 3's losses, SGD) on the first device.

    Args:
      backbone, channels, size: as in `benchmark_network`.
      batches: images at a time.
      repeats: timed runs of each.
      limit: seconds after which nothing more is begun; what is missing then has `not_measured` as its result.

    Returns:
      JSON values: `ceilings`, TFLOP/s of a matrix product by precision; `rows`, each with images per second, `share` of
      the ceiling that the counted work is (three forward passes for a step), and the program's memory in MiB; and the
      process's peak.
    """
    import jax

    from purinet_jax.devices import matrix_product_rate
    from purinet_jax.network.flops import forward_flops
    from purinet_jax.network.model import build_model

    end = time.monotonic() + limit
    model = build_model({"backbone": backbone, "channels": channels})
    settings = {"backbone": backbone, "channels": channels, "size": size, "repeats": repeats}
    # Small ones first, so that a limit costs the large ones.
    wanted = [
        (batch_size, precision, kind)
        for batch_size in batches
        for precision in PRECISIONS
        for kind in ("level1_inference", "train_step")
    ]
    ceilings, rows = {}, []
    for precision, (dtype, products) in PRECISIONS.items():
        matrix_product_rate.cache_clear()
        with jax.default_matmul_precision(products):
            ceilings[precision] = matrix_product_rate(dtype)
    with ThreadPoolExecutor(8 if jax.default_backend() != "cpu" else 1) as pool:
        compiled = [
            pool.submit(_compiled, backbone, channels, size, count, precision, kind, end)
            for count, precision, kind in wanted
        ]
        for (batch_size, precision, kind), future in zip(wanted, compiled, strict=True):
            print(f"measuring {kind}, {precision}, batch {batch_size} …", file=sys.stderr, flush=True)
            row: dict[str, Any] = {"kind": kind, "precision": precision, "batch_size": batch_size}
            rows.append(row)
            try:
                program = future.result()
                if program is None or time.monotonic() > end:
                    row["not_measured"] = "the time was up"
                    continue
                run, memory = program
                run()
                seconds = statistics.median(milliseconds(run) for _ in range(repeats)) / 1000
            except jax.errors.JaxRuntimeError as error:  # most likely out of memory
                row["not_measured"] = str(error).splitlines()[0]
                continue
            work = forward_flops(model, size) * (3 if kind == "train_step" else 1) * batch_size
            row |= {
                "images_per_second": round(batch_size / seconds, 2),
                "ms": round(seconds * 1000, 2),
                "share": round(work / seconds / ceilings[precision], 3),
                "program_mib": memory,
            }
    device = jax.devices()[0]
    return {
        "machine": {**describe_machine(), "device": device.device_kind, "jax": jax.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "settings": settings,
        "forward_gflop_per_image": round(forward_flops(model, size) / 1e9, 2),
        "ceilings_tflops": {precision: round(rate / 1e12, 3) for precision, rate in ceilings.items()},
        "rows": rows,
        **peak_memory(device),
    }


def _compiled(
    backbone: str, channels: int, size: int, count: int, precision: str, kind: str, end: float
) -> tuple[Callable[[], None], int] | None:
    """A call that runs a program once, and the MiB that it needs; None where the time is up."""
    import jax
    import jax.numpy as jnp

    from purinet_jax.network.inference import saliency_maps
    from purinet_jax.network.model import build_model
    from purinet_jax.training.optim import OptimizerConfig, make_optimizer
    from purinet_jax.training.step import create_state, train_step

    if time.monotonic() > end:
        return None
    dtype, products = PRECISIONS[precision]
    model = build_model({"backbone": backbone, "channels": channels}, dtype=jnp.dtype(dtype))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    optimizer = make_optimizer(OptimizerConfig(), 1000)

    def variables() -> Any:
        return jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), dict(shapes))

    def batch() -> dict[str, Any]:
        return {
            "image": jnp.full((count, size, size, 3), 128, jnp.uint8),
            "mask": jnp.ones((count, size, size, 1), jnp.uint8),
            "superpixels": jnp.zeros((count, size, size), jnp.int32),
        }

    state_of = jax.jit(lambda: create_state(model, variables(), optimizer, Objective()))
    with jax.default_matmul_precision(products):
        if kind == "train_step":
            step = jax.jit(train_step, donate_argnums=0)
            program = step.lower(jax.eval_shape(state_of), jax.eval_shape(batch)).compile()
        else:
            answer = jax.jit(lambda variables, images: saliency_maps(model, variables, images))
            program = answer.lower(jax.eval_shape(variables), jax.eval_shape(batch)["image"]).compile()
    held: dict[str, Any] = {}  # made when it is run first: what waits to be timed takes no memory

    def run() -> None:
        if not held:
            held["batch"] = batch()
            held["given"] = state_of() if kind == "train_step" else variables()
        if kind == "train_step":
            held["given"], _ = jax.block_until_ready(program(held["given"], held["batch"]))
        else:
            jax.block_until_ready(program(held["given"], held["batch"]["image"]))

    analysis: Any = program.memory_analysis()
    memory = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return run, (memory - analysis.alias_size_in_bytes) // 2**20
