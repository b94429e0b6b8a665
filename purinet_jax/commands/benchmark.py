"""`purinet benchmark`: how fast this machine is, as JSON."""

import argparse
import json
import sys
from pathlib import Path

from purinet_jax.commands.arguments import add_require, positive, say_devices

SUMMARY = "Measure speed and memory; prints JSON."
EXAMPLES = """examples:
  purinet benchmark
  purinet benchmark --backbone mobilenet_v2 --size 224 --repeats 20 > benchmark.json
  purinet benchmark --backbone mobilenet_v2 --size 224 --repeats 20 --compare benchmark.json
  purinet benchmark --data DUTS-TR.zip
  purinet benchmark --superpixels DUTS-TR.zip
  purinet benchmark --metrics
  purinet benchmark --predict
  purinet benchmark --serve
  purinet benchmark --memory 8 32
  purinet benchmark --scaling --backbone mobilenet_v2 --channels 16 --repeats 3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--backbone", default="resnet50", choices=("resnet50", "vgg16", "mobilenet_v2"))
    parser.add_argument("--channels", type=positive, default=128)
    parser.add_argument("--size", type=positive, default=320, help="side of the images (default 320)")
    parser.add_argument("--batch", type=positive, default=2, help="images in a train step (default 2)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=positive, default=7, help="timed runs of each (default 7)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--superpixels",
        type=Path,
        metavar="DIR|ZIP",
        help="measure superpixels instead, on these pairs, and the train step with each kind of them",
    )
    instead.add_argument(
        "--data", type=Path, metavar="DIR|ZIP", help="measure the input pipeline instead, on these pairs"
    )
    instead.add_argument("--metrics", action="store_true", help="measure the metrics instead, beside PySODMetrics")
    instead.add_argument(
        "--predict", action="store_true", help="measure `purinet predict` instead, with the package's weights"
    )
    instead.add_argument(
        "--serve",
        action="store_true",
        help="measure `purinet serve` instead, asked by 32 clients at once, one request in twenty being hostile",
    )
    instead.add_argument(
        "--memory",
        type=positive,
        nargs="+",
        metavar="BATCH",
        help="compile the train step for these batches instead, in both dtypes, without and with config.loop.remat, "
        "and print what memory it needs",
    )
    instead.add_argument(
        "--scaling", action="store_true", help="measure the train step over batches and sizes instead, with a fit"
    )
    parser.add_argument(
        "--images",
        type=positive,
        help="images measured on (default: 100 superpixels, 960 data, 20 metrics, 300 predict, 2000 serve)",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE.json",
        help="an earlier result of the network's benchmark: a table of before and after follows on standard error",
    )
    add_require(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.benchmarks.machine import in_process
    from purinet_jax.devices import describe_devices

    # In another process: one that has JAX started holds the accelerator's memory, which those that measure need.
    say_devices(in_process(describe_devices, arguments.require))
    settings = {
        "backbone": arguments.backbone,
        "channels": arguments.channels,
        "size": arguments.size,
        "batch_size": arguments.batch,
        "dtype": arguments.dtype,
        "repeats": arguments.repeats,
    }
    if arguments.superpixels is not None:
        from purinet_jax.benchmarks.superpixels import benchmark_superpixels

        result = benchmark_superpixels(arguments.superpixels, images=arguments.images or 100, **settings)
    elif arguments.data is not None:
        from purinet_jax.benchmarks.data import benchmark_data
        from purinet_jax.memory import keep_freed_memory

        keep_freed_memory()  # as `purinet train` does
        images, repeats = arguments.images or 960, arguments.repeats
        result = benchmark_data(arguments.data, size=arguments.size, images=images, repeats=repeats)
    elif arguments.metrics:
        from purinet_jax.benchmarks.metrics import benchmark_metrics

        result = benchmark_metrics(images=arguments.images or 20, repeats=arguments.repeats)
    elif arguments.predict:
        from purinet_jax.benchmarks.predict import benchmark_predict

        result = benchmark_predict(size=arguments.size, images=arguments.images or 300, repeats=arguments.repeats)
    elif arguments.serve:
        from purinet_jax.benchmarks.serve import benchmark_serve

        result = benchmark_serve(size=arguments.size, requests=arguments.images or 2000)
    elif arguments.memory is not None:
        from purinet_jax.benchmarks.memory import benchmark_memory

        model = {"backbone": arguments.backbone, "channels": arguments.channels}
        result = benchmark_memory(model, size=arguments.size, batches=arguments.memory)
    elif arguments.scaling:
        from purinet_jax.benchmarks.scaling import benchmark_scaling

        network = {name: settings[name] for name in ("backbone", "channels", "dtype", "repeats")}
        result = benchmark_scaling(**network)
    else:
        from purinet_jax.benchmarks.network import benchmark_network, compared, earlier_result

        # Read first: a file that cannot be used is said before minutes of measuring.
        before = None if arguments.compare is None else earlier_result(arguments.compare, settings)
        result = benchmark_network(**settings)
        if before is not None:
            print(compared(before, result), file=sys.stderr)
    print(json.dumps(result, indent=2))
    return 0
