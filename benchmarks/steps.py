"""Times one train step in four ways: on one device, and over several with pmap, shard_map and jit; prints JSON.

    python benchmarks/steps.py --devices 4

On CPUs the devices are threads of this host, which share its cores, so what counts is how much each way adds to one
device's processor time. Each way runs in a fresh process.
"""

import argparse
import json
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from purinet_jax.benchmarks.machine import heading, in_process, say, timings
from purinet_jax.network.config import ModelConfig
from purinet_jax.training.initial import draw
from purinet_jax.training.losses import Objective
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.step import AXIS, create_state, place_state, pmap_step, sharded_step, train_step

WAYS = ("one device", "pmap", "shard_map", "jit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=4, help="host devices, where there is no accelerator")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="images in a step, over all devices")
    parser.add_argument("--size", type=int, default=96, help="side of the images, pixels")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each")
    arguments = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=" + str(
        arguments.devices
    )
    result = heading(vars(arguments))
    config = ModelConfig(arguments.backbone, arguments.channels, light=arguments.backbone != "resnet50")
    result["ways"] = {}
    for way in WAYS:
        say(f"measuring {way}")
        result["ways"][way] = in_process(measure, way, config, arguments.batch, arguments.size, arguments.repeats)
    print(json.dumps(result, indent=2))


def measure(way: str, config: ModelConfig, batch_size: int, size: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of a step by the clock and of processor time, seconds of compilation, and the first loss."""
    devices = jax.devices()[:1] if way == "one device" else jax.devices()
    # What is seen by name averages over the axis; under `jit` the batch is one array.
    model = config.build(axis_name=None if way == "jit" else AXIS)
    variables = draw(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))), seed=0)
    state: Any = create_state(model, variables, make_optimizer(OptimizerConfig(), 1000), Objective())
    rng = np.random.default_rng(0)
    batch: Any = {
        "image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8),
        "mask": rng.integers(0, 2, (batch_size, size, size, 1), np.uint8),
    }
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    step: Any
    if way == "jit":
        step = sharded_step(mesh)
    elif way == "shard_map":
        over, same = PartitionSpec(AXIS), PartitionSpec()
        sharded = jax.shard_map(train_step, mesh=mesh, in_specs=(same, over), out_specs=(same, same))
        step = jax.jit(sharded, donate_argnums=0)
        state = place_state(state, devices)  # otherwise the second step is compiled again
    else:
        state = place_state(state, devices)
        batch = {key: x.reshape(len(devices), -1, *x.shape[1:]) for key, x in batch.items()}
        step = pmap_step(devices)
    start = time.perf_counter()
    state, metrics = step(state, batch)
    loss = float(np.mean(metrics["loss"]))
    compiled = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    seconds, processor_seconds = timings(run, repeats)
    return {
        "median_ms": round(statistics.median(seconds) * 1000, 1),
        "median_processor_ms": round(statistics.median(processor_seconds) * 1000, 1),
        "first_step_s": round(compiled, 1),
        "first_loss": round(loss, 5),
    }


if __name__ == "__main__":
    main()
