"""Speed and memory of inference and of the train step, each measured in a process of its own.

Where torch is importable, one of its convolutions is timed just before every run as a yardstick: the ratio to it is
comparable between machines, and holds when the machine's speed drifts.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purinet_jax.benchmarks.machine import heading, in_process, milliseconds, peak_memory, say
from purinet_jax.devices import matrix_product_rate
from purinet_jax.memory import keep_freed_memory
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.cpu.platform import compile_forward_pass
from purinet_jax.network.flops import forward_flops, train_step_flops
from purinet_jax.network.folding import fold_batchnorm
from purinet_jax.network.inference import all_maps, saliency_maps
from purinet_jax.network.model import PurNet
from purinet_jax.training.losses import Objective
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.step import AXIS, create_state, place_state, pmap_step, train_step
from purinet_jax.training.superpixels import grid_regions

MEASUREMENTS = ("level1_inference", "all_maps_inference", "train_step")
YARDSTICK = "torch.nn.functional.conv2d, 3×3, 128→128, 80×80, batch 1, float32, 2 threads"


def benchmark_network(config: ModelConfig, *, size: int, batch_size: int, dtype: str, repeats: int) -> dict[str, Any]:
    """Times the finest map, all maps and one train step (stage 3's losses, SGD).

    Args:
      config: the network.
      size: side of the square images in pixels.
      batch_size: images in a train step; inference takes one.
      dtype: what convolutions compute in.
      repeats: timed runs of each, after two that are not counted.

    Returns:
      JSON values: for each of `MEASUREMENTS` the median and minimum in milliseconds, compilation in seconds, peak
      memory in MiB, the work of a run in 10⁹ floating point operations (`gflop`), its rate as a share of a large matrix
      product's (`of_matrix_product`) and, with torch, `yardsticks`: the median ratio to the yardstick.
    """
    settings = {"size": size, "batch_size": batch_size, "dtype": dtype, "repeats": repeats}
    result = heading({"model": config.to_dict(), **settings})
    result["yardstick"] = YARDSTICK if importlib.util.find_spec("torch") else None
    for name in MEASUREMENTS:
        say(f"measuring {name}")
        result[name] = in_process(_measure, name, config, size, batch_size, dtype, repeats)
    return result


def _measure(name: str, config: ModelConfig, size: int, batch_size: int, dtype: str, repeats: int) -> dict[str, Any]:
    start = time.perf_counter()
    if name == "train_step":
        keep_freed_memory()  # as `purinet train` does
        run = repeatable_train_step(config, size=size, batch_size=batch_size, dtype=dtype)
    else:
        run = _inference(config, size, dtype, name == "level1_inference")
    run()
    compile_seconds = time.perf_counter() - start
    run()
    yardstick = _yardstick()
    times, yardsticks = [], []
    for _ in range(repeats):
        if yardstick is not None:
            yardsticks.append(statistics.median(milliseconds(yardstick) for _ in range(10)))
        times.append(milliseconds(run))
    if name == "train_step":
        flops = batch_size * train_step_flops(config.build(), size)
    else:
        flops = forward_flops(config.build(), size, finest_only=name == "level1_inference")
    median = statistics.median(times)
    result = {
        "median_ms": round(median, 2),
        "minimum_ms": round(min(times), 2),
        "compile_s": round(compile_seconds, 1),
        **peak_memory(jax.devices()[0]),
        "gflop": round(flops / 1e9, 4),
        "of_matrix_product": round(flops / (median / 1000) / matrix_product_rate(dtype), 6),
    }
    if yardsticks:
        ratios = [time / yardstick for time, yardstick in zip(times, yardsticks, strict=True)]
        result["yardsticks"] = round(statistics.median(ratios), 1)
        result["yardstick_ms"] = round(statistics.median(yardsticks), 2)
    return result


def _variables(model: PurNet) -> Any:
    """Constant variables of the right shapes: speed does not depend on their values, and drawing them takes long."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), dict(shapes))


def _inference(config: ModelConfig, size: int, dtype: str, finest_only: bool) -> Callable[[], Any]:
    model = config.build(dtype=jnp.dtype(dtype))
    variables = jax.device_put(fold_batchnorm(model, _variables(model)))  # as for predicting
    images = jnp.full((1, size, size, 3), 128, jnp.uint8)
    maps = saliency_maps if finest_only else all_maps
    compiled = compile_forward_pass(maps.lower(model, variables, images))
    return lambda: jax.block_until_ready(compiled(variables, images))


def repeatable_train_step(
    config: ModelConfig, *, size: int, batch_size: int, dtype: str, objective: Objective | None = None
) -> Callable[[], None]:
    """Returns a call that takes one train step (SGD) on random images, each from the state that the last one left.

    Args:
      config, size, batch_size, dtype: as in `benchmark_network`.
      objective: the losses; stage 3's by default.
    """
    objective = objective or Objective()
    device = jax.devices()[:1]
    model = config.build(axis_name=AXIS, dtype=jnp.dtype(dtype))
    state = create_state(model, _variables(model), make_optimizer(OptimizerConfig(), 1000), objective)
    state = place_state(state, device)
    shape = (1, batch_size, size, size)
    rng = np.random.default_rng(0)
    batch: Any = {
        "image": rng.integers(0, 256, (*shape, 3), np.uint8),
        "mask": rng.integers(0, 2, (*shape, 1), np.uint8),
    }
    if objective.structural == "region" and objective.superpixels == "files":
        batch["superpixels"] = np.array(np.broadcast_to(grid_regions(size, size), shape))
    pmapped: Any = pmap_step(device)
    step = pmapped.lower(state, batch).compile()

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def lower_train_step(
    model: PurNet, batch_size: int, size: int, sharding: jax.sharding.Sharding | None = None
) -> jax.stages.Lowered:
    """Lowers the train step (stage 3's losses, SGD) for one device from shapes alone; its state is donated.

    `sharding` places state and batch on the device, the default one if it is `None`.
    """

    def initial_state() -> Any:
        return create_state(model, _variables(model), make_optimizer(OptimizerConfig(), 1000), Objective())

    shape = (batch_size, size, size)
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((*shape, 1), jnp.uint8),
    }
    step = jax.jit(train_step, donate_argnums=0, in_shardings=sharding)
    return step.lower(jax.eval_shape(initial_state), batch)


def _yardstick() -> Callable[[], Any] | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    image, kernel = torch.randn(1, 128, 80, 80), torch.randn(128, 128, 3, 3)
    return lambda: torch.nn.functional.conv2d(image, kernel, padding=1)
