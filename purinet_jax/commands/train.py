"""`purinet train`: trains a network, or resumes a run."""

import argparse
import logging
from pathlib import Path
from typing import Any

from purinet_jax.commands.arguments import add_object_labels, add_require, not_negative, positive, say_devices

SUMMARY = "Train a network, or resume a run."
EXAMPLES = """examples:
  purinet train --config purnet_resnet50_stage1 --data DUTS-TR.zip --init resnet50.safetensors -o runs/stage1
  purinet train --config purnet_resnet50_stage2 --data DUTS-TR.zip --init runs/stage1 -o runs/stage2
  purinet train --config tiny --data DUTS-TR.zip -o runs/small --config.batch_size=8 --config.data.size=224

  srun purinet train --config purnet_lite --data DUTS-TR.zip -o runs/lite --distributed

The same command again resumes the run in the output folder. SIGTERM and Ctrl-C save first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME|FILE.py",
        help="a configuration's name, such as purnet_lite, or a file with get_config(); --config.KEY=VALUE overrides a "
        "setting",
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR|ZIP", help="training pairs, or a prepared set (DIR:train)"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="the run's folder")
    parser.add_argument("--validation", type=Path, metavar="DIR|ZIP", help="pairs to measure the error on")
    parser.add_argument(
        "--init",
        type=Path,
        metavar="RUN|FILE|NAME",
        help="weights to start from: a run's folder, a file, context or lite",
    )
    parser.add_argument(
        "--partial", action="store_true", help="take the tensors of --init that fit the network, and name the others"
    )
    parser.add_argument(
        "--profile", type=not_negative, default=0, metavar="STEPS", help="steps to trace for TensorBoard and Perfetto"
    )
    parser.add_argument(
        "--superpixels", type=Path, metavar="DIR", help="the authors' .mat files, for config.losses.superpixels=files"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable pairs out")
    add_object_labels(parser)
    parser.add_argument(
        "--without-leaks",
        action="store_true",
        help="leave out the image of DUTS-TR that is in DUTS-TE, and second copies of images",
    )
    several = parser.add_argument_group("several processes (docs/clusters.md)")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="be one of several processes, as set by Slurm, Kubernetes, Cloud TPU or Open MPI",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: the address that process 0 listens at")
    several.add_argument("--processes", type=positive, metavar="N", help="the number of processes")
    several.add_argument("--process", type=not_negative, metavar="I", help="the index of this process, from 0")
    add_require(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars, and no word on the device")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.training.configurations import load_config

    config = load_config(arguments.config, arguments.overrides)
    address = (arguments.coordinator, arguments.processes, arguments.process)
    if not arguments.distributed and all(part is None for part in address):
        _train(arguments, config)
        return 0

    from purinet_jax import processes

    # JAX's default heartbeat is 100 s.
    with processes.joined(*address, heartbeat=min(config.loop.timeout / 4 or 100, 100)):
        if not processes.is_first():
            logging.getLogger("purinet_jax").setLevel(logging.WARNING)
            arguments.quiet = True
        _train(arguments, config)
    return 0


def _train(arguments: argparse.Namespace, config: Any) -> None:
    from purinet_jax.devices import describe_devices
    from purinet_jax.memory import keep_freed_memory
    from purinet_jax.training.train import train

    keep_freed_memory()
    say_devices(describe_devices(arguments.require), arguments.quiet)
    train(
        config,
        arguments.data,
        arguments.output,
        validation=arguments.validation,
        init=arguments.init,
        superpixels=arguments.superpixels,
        skip_bad=arguments.skip_bad,
        object_labels=arguments.object_labels,
        without_leaks=arguments.without_leaks,
        partial=arguments.partial,
        profile=arguments.profile,
        progress=not arguments.quiet,
    )
