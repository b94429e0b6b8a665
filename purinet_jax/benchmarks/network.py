"""Speed and memory of inference and of the train step, as numbers that can be compared between machines.

Each is measured in a process of its own, so that its peak memory is its own. Where torch is importable, one of its
convolutions is timed in turn with every run as a yardstick: the ratio to it holds when the machine's speed drifts.
"""

import dataclasses
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from purinet_jax.benchmarks.machine import (
    describe_machine,
    in_process,
    matrix_product_gflops,
    milliseconds,
    peak_memory,
)
from purinet_jax.errors import InputError
from purinet_jax.memory import keep_freed_memory
from purinet_jax.training.losses import Objective

MEASUREMENTS = ("level1_inference", "all_maps_inference", "train_step")
YARDSTICK = "torch.nn.functional.conv2d, 3×3, 128→128, 80×80, batch 1, float32, 2 threads"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program that can be called again and again, and its operations in one call (a multiply-add is two),
    as XLA counts them in what it compiled, or `None` where it does not."""

    call: Callable[[], None]
    operations: float | None

    def __call__(self) -> None:
        self.call()


def benchmark_network(
    *, backbone: str, channels: int, size: int, batch_size: int, dtype: str, repeats: int
) -> dict[str, Any]:
    """Times the level-1 answer, all maps and one train step of the whole network (stage 3's losses, SGD).

    Args:
      backbone: an extractor's name, as in `build_model`.
      channels: the decoder's width.
      size: side of the square images in pixels.
      batch_size: images in a train step (inference takes one).
      dtype: what convolutions compute in.
      repeats: timed runs of each; one run to compile comes before and is not counted.

    Returns:
      JSON values: for each measurement the median and minimum in milliseconds, compilation in seconds, peak memory
      in MiB, the operations of one run in 10⁹ (`gflop`) and their share of what a large float32 matrix product reaches
      just after (`of_matrix_product`), and, with torch, `yardsticks`, the median of the ratios to the yardstick timed
      just before.
    """
    settings = {
        "backbone": backbone,
        "channels": channels,
        "size": size,
        "batch_size": batch_size,
        "dtype": dtype,
        "repeats": repeats,
    }
    results: dict[str, Any] = {}
    for name in MEASUREMENTS:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        results[name] = in_process(_measure, name, settings)
    machine = results["train_step"].pop("machine")
    for result in results.values():
        result.pop("machine", None)
    has_yardstick = importlib.util.find_spec("torch") is not None
    return {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "settings": settings,
        "yardstick": YARDSTICK if has_yardstick else None,
        **results,
    }


def _measure(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in a fresh process."""
    import jax

    start = time.perf_counter()
    if name == "train_step":
        keep_freed_memory()  # as `purinet train` does
        run = repeatable_train_step(settings, Objective())
    else:
        run = _inference(settings, name == "all_maps_inference")
    run()
    compile_seconds = time.perf_counter() - start
    run()
    yardstick = _yardstick()
    times, ratios, yardsticks = [], [], []
    for _ in range(settings["repeats"]):
        if yardstick is not None:
            yardsticks.append(statistics.median(milliseconds(yardstick) for _ in range(10)))
        times.append(milliseconds(run))
        if yardsticks:
            ratios.append(times[-1] / yardsticks[-1])
    result = {
        "median_ms": round(statistics.median(times), 2),
        "minimum_ms": round(min(times), 2),
        "compile_s": round(compile_seconds, 1),
        **peak_memory(jax.devices()[0]),
        "machine": {**describe_machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__},
    }
    if run.operations is not None:
        ceiling = matrix_product_gflops()
        result |= {
            "gflop": round(run.operations / 1e9, 4),
            "of_matrix_product": round(run.operations / (statistics.median(times) * 1e6) / ceiling, 6),
            "matrix_product_gflops": round(ceiling, 1),
        }
    if ratios:
        result |= {
            "yardsticks": round(statistics.median(ratios), 1),
            "yardstick_ms": round(statistics.median(yardsticks), 2),
        }
    return result


def _variables(settings: dict[str, Any]) -> Any:
    """Parameters of the right shapes: speed does not depend on their values, and drawing them takes long."""
    import jax
    import jax.numpy as jnp

    from purinet_jax.network.model import build_model

    model = build_model({"backbone": settings["backbone"], "channels": settings["channels"]})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda x: 0.01 * jnp.ones(x.shape, x.dtype), dict(shapes))


def _program(call: Callable[[], None], compiled: Any) -> Program:
    counted = compiled.cost_analysis() or {}
    return Program(call, counted.get("flops"))


def _inference(settings: dict[str, Any], all_maps: bool) -> Program:
    import jax
    import jax.numpy as jnp

    from purinet_jax.network.cpu.platform import compile_forward_pass
    from purinet_jax.network.folding import fold_batchnorm
    from purinet_jax.network.inference import saliency_maps
    from purinet_jax.network.model import build_model

    model = build_model(
        {"backbone": settings["backbone"], "channels": settings["channels"]}, dtype=jnp.dtype(settings["dtype"])
    )
    variables = jax.device_put(fold_batchnorm(model, _variables(settings)))  # as for predicting
    images = jnp.full((1, settings["size"], settings["size"], 3), 128, jnp.uint8)
    if all_maps:
        images = images.astype(jnp.float32)
        lowered = jax.jit(model.apply).lower(variables, images)
    else:
        lowered = saliency_maps.lower(model, variables, images)
    compiled = compile_forward_pass(lowered)
    return _program(lambda: jax.block_until_ready(compiled(variables, images)), compiled)


def repeatable_train_step(settings: dict[str, Any], objective: Objective) -> Program:
    """A call that takes one train step of the whole network (SGD) on random images, each from the state before.

    Args:
      settings: `backbone`, `channels`, `dtype`, `size` and `batch_size`, as `benchmark_network` takes them.
      objective: the losses.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from purinet_jax.network.model import build_model
    from purinet_jax.training.optim import OptimizerConfig, make_optimizer
    from purinet_jax.training.step import AXIS, create_state, place_state, pmap_step
    from purinet_jax.training.superpixels import grid_regions

    device = jax.devices()[:1]
    model = build_model(
        {"backbone": settings["backbone"], "channels": settings["channels"]},
        axis_name=AXIS,
        dtype=jnp.dtype(settings["dtype"]),
    )
    state = create_state(model, _variables(settings), make_optimizer(OptimizerConfig(), 1000), objective)
    state = place_state(state, device)
    count, size = settings["batch_size"], settings["size"]
    rng = np.random.default_rng(0)
    batch: Any = {
        "image": rng.integers(0, 256, (1, count, size, size, 3), np.uint8),
        "mask": rng.integers(0, 2, (1, count, size, size, 1), np.uint8),
    }
    if objective.structural == "region" and objective.superpixels == "stored":
        batch["superpixels"] = np.array(np.broadcast_to(grid_regions(size, size), (1, count, size, size)))

    pmapped: Any = pmap_step(device)
    step = pmapped.lower(state, batch).compile()

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return _program(run, step)


def earlier_result(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What `benchmark_network` gave before, as `purinet benchmark` printed it into a file.

    Raises:
      InputError: the file is not such a result, or one of other settings (the number of repeats may differ).
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        theirs = {**result["settings"], "repeats": settings["repeats"]}
        measured = [result[name]["median_ms"] for name in MEASUREMENTS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a result of the network's benchmark ({error})") from error
    if theirs != settings or not all(measured):
        raise InputError(f"{path}: measured with {theirs}, not with {settings}")
    return result


def compared(before: dict[str, Any], after: dict[str, Any]) -> str:
    """A table of two results of `benchmark_network`, one line a measurement: before, after and their ratio.

    Yardsticks are compared where both have them, since they hold when the machine's speed differs, else milliseconds.
    """
    lines = [f"{'':<20} {'before':>10} {'after':>10} {'ratio':>7}"]
    for name in MEASUREMENTS:
        unit = "yardsticks" if "yardsticks" in before[name] and "yardsticks" in after[name] else "median_ms"
        for key in (unit, "peak_memory_mib"):
            old, new = before[name][key], after[name][key]
            lines.append(f"{name:<20} {old:>10} {new:>10} {new / old:>7.3f}  {key}")
    return "\n".join(lines)


def _yardstick() -> Callable[[], None] | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(2)
    image, kernel = torch.randn(1, 128, 80, 80), torch.randn(128, 128, 3, 3)

    def run() -> None:
        with torch.no_grad():
            torch.nn.functional.conv2d(image, kernel, padding=1)

    run()
    return run
