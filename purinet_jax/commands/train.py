"""`purinet train`: a run, from its configuration to its last checkpoint."""

import argparse
import sys
from pathlib import Path

from purinet_jax.commands.arguments import add_require, say_devices

SUMMARY = "Train a network, or go on with a run."
EXAMPLES = """examples:
  purinet train --config purnet_resnet50_stage1 --data DUTS-TR.zip --init resnet50.safetensors -o runs/stage1
  purinet train --config purnet_resnet50_stage2 --data DUTS-TR.zip --init runs/stage1 -o runs/stage2
  purinet train --config tiny --data DUTS-TR.zip -o runs/small --config.batch_size=8 --config.data.size=224

The same command again goes on where the run in the output folder stopped. SIGTERM and Ctrl-C save first."""


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
        "--data", required=True, type=Path, metavar="DIR|ZIP", help="training pairs, or a prepared set as DIR:train"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="the run's folder")
    parser.add_argument("--validation", type=Path, metavar="DIR|ZIP", help="pairs to measure the error on")
    parser.add_argument("--init", type=Path, metavar="RUN|FILE", help="weights to start from")
    parser.add_argument(
        "--superpixels",
        default="slic",
        metavar="DIR",
        help="the authors' .mat files (default: computed by SLIC)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable pairs out")
    parser.add_argument(
        "--without-leaks",
        action="store_true",
        help="leave out the image of DUTS-TR that is in DUTS-TE, and second copies of images",
    )
    add_require(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars, and no word on the device")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.training.configurations import load_config

    config = load_config(arguments.config, arguments.overrides)

    from purinet_jax.devices import describe_devices
    from purinet_jax.memory import keep_freed_memory
    from purinet_jax.training.train import NonFiniteLoss, train

    keep_freed_memory()
    say_devices(describe_devices(arguments.require), arguments.quiet)
    try:
        train(
            config,
            arguments.data,
            arguments.output,
            validation=arguments.validation,
            init=arguments.init,
            superpixels=arguments.superpixels,
            skip_bad=arguments.skip_bad,
            without_leaks=arguments.without_leaks,
            progress=not arguments.quiet,
        )
    except NonFiniteLoss as error:
        print(f"purinet: {error}", file=sys.stderr)
        return 1
    return 0
