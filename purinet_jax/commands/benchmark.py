"""`purinet benchmark`: how fast this machine is, as JSON."""

import argparse
import json

from purinet_jax.commands.arguments import add_require, positive, say_devices
from purinet_jax.errors import InputError

SUMMARY = "Measure speed and memory; prints JSON."
EXAMPLES = """examples:
  purinet benchmark
  purinet benchmark --backbone efficientnet_lite0 --channels 32 --size 224 --repeats 20 > benchmark.json
  purinet benchmark --predict
  purinet benchmark --memory 8 32
  purinet benchmark --accelerator --backbone resnet50 --require gpu"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument(
        "--backbone", metavar="NAME", help="measure the released decoder on this backbone, not the network context"
    )
    parser.add_argument("--channels", type=positive, help="width of that decoder (default 128)")
    parser.add_argument("--size", type=positive, default=320, help="side of the images (default 320)")
    parser.add_argument("--batch", type=positive, help="images in a train step (default 2)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the train step (default float32)")
    parser.add_argument("--repeats", type=positive, help="timed runs of each (default 7)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--predict", action="store_true", help="measure `purinet predict` with the package's network instead"
    )
    instead.add_argument(
        "--memory",
        type=positive,
        nargs="+",
        metavar="BATCH",
        help="compile the train step for these batch sizes in both dtypes, without and with config.loop.remat, and "
        "print the memory that it needs",
    )
    instead.add_argument(
        "--accelerator",
        type=positive,
        nargs="*",
        metavar="BATCH",
        help="measure inference and train step over batch sizes (default 1 8 32 64) and precisions, for six minutes "
        "at most",
    )
    parser.add_argument("--images", type=positive, help="files that --predict reads (default 300)")
    add_require(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.benchmarks.machine import chosen_network, in_process
    from purinet_jax.devices import describe_devices

    _check_used(arguments)
    config = chosen_network(arguments.backbone, arguments.channels)
    # In another process, because JAX reserves an accelerator's memory, which the measurements need, once it runs.
    say_devices(in_process(describe_devices, arguments.require))
    size, repeats = arguments.size, arguments.repeats or 7
    if arguments.predict:
        from purinet_jax.benchmarks.prediction import benchmark_predict

        result = benchmark_predict(size=size, images=arguments.images or 300, repeats=repeats)
    elif arguments.memory is not None:
        from purinet_jax.benchmarks.memory import benchmark_memory

        result = benchmark_memory(config, size=size, batches=arguments.memory)
    elif arguments.accelerator is not None:
        from purinet_jax.benchmarks.accelerator import benchmark_accelerator

        batches = arguments.accelerator or (1, 8, 32, 64)
        result = benchmark_accelerator(config, size=size, batches=batches, repeats=repeats)
    else:
        from purinet_jax.benchmarks.network import benchmark_network

        result = benchmark_network(
            config, size=size, batch_size=arguments.batch or 2, dtype=arguments.dtype or "float32", repeats=repeats
        )
    print(json.dumps(result, indent=2))
    return 0


def _check_used(arguments: argparse.Namespace) -> None:
    """Raises InputError for an option that what is measured does not depend on."""
    modes = ("predict", "memory", "accelerator")
    mode = next((name for name in modes if getattr(arguments, name) not in (None, False)), None)
    used = {
        "predict": {"repeats", "images"},
        "memory": {"backbone", "channels"},
        "accelerator": {"backbone", "channels", "repeats"},
        None: {"backbone", "channels", "batch", "dtype", "repeats"},
    }[mode]
    for name in ("backbone", "channels", "batch", "dtype", "repeats", "images"):
        if name not in used and getattr(arguments, name) is not None:
            raise InputError(f"--{name}: " + (f"not with --{mode}" if mode else "goes with --predict"))
