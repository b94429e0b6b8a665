"""Speed and memory of inference and of the train step, as numbers that can be compared between machines.

Each is measured in a process of its own, so that its peak memory is its own. Where torch is importable, one of its
convolutions is timed in turn with every run as a yardstick: the ratio to it holds when the machine's speed drifts.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from purinet_jax.benchmarks.machine import describe_machine, in_process, milliseconds, peak_memory
from purinet_jax.memory import keep_freed_memory
from purinet_jax.training.losses import Objective

YARDSTICK = "torch.nn.functional.conv2d, 3×3, 128→128, 80×80, batch 1, float32, 2 threads"


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
      in MiB, and, with torch, `yardsticks`, the median of the ratios to the yardstick timed just before.
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
    for name in ("level1_inference", "all_maps_inference", "train_step"):
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

    if name == "train_step":
        keep_freed_memory()  # as `purinet train` does
        run = repeatable_train_step(settings, Objective())
    else:
        run = _inference(settings, name == "all_maps_inference")
    start = time.perf_counter()
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


def _inference(settings: dict[str, Any], all_maps: bool) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    from purinet_jax.network.folding import fold_batchnorm
    from purinet_jax.network.inference import saliency_maps
    from purinet_jax.network.model import build_model

    model = build_model(
        {"backbone": settings["backbone"], "channels": settings["channels"]}, dtype=jnp.dtype(settings["dtype"])
    )
    variables = jax.device_put(fold_batchnorm(model, _variables(settings)))  # as for predicting
    images = jnp.full((1, settings["size"], settings["size"], 3), 128, jnp.uint8)
    apply = jax.jit(model.apply)

    def run() -> None:
        result = apply(variables, images.astype(jnp.float32)) if all_maps else saliency_maps(model, variables, images)
        jax.block_until_ready(result)

    return run


def repeatable_train_step(settings: dict[str, Any], objective: Objective) -> Callable[[], None]:
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
    step = pmap_step(device)
    count, size = settings["batch_size"], settings["size"]
    rng = np.random.default_rng(0)
    batch: Any = {
        "image": rng.integers(0, 256, (1, count, size, size, 3), np.uint8),
        "mask": rng.integers(0, 2, (1, count, size, size, 1), np.uint8),
    }
    if objective.structural == "region" and objective.superpixels == "stored":
        batch["superpixels"] = np.array(np.broadcast_to(grid_regions(size, size), (1, count, size, size)))

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


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
