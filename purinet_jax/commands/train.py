"""`purinet train`: a run, from its configuration to its last checkpoint."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from purinet_jax.commands.arguments import add_require, not_negative, positive, say_devices
from purinet_jax.errors import InputError

logger = logging.getLogger(__name__)

SUMMARY = "Train a network, or go on with a run."
EXAMPLES = """examples:
  purinet train --config purnet_resnet50_stage1 --data DUTS-TR.zip --init resnet50.safetensors -o runs/stage1
  purinet train --config purnet_resnet50_stage2 --data DUTS-TR.zip --init runs/stage1 -o runs/stage2
  purinet train --config tiny --data DUTS-TR.zip -o runs/small --config.batch_size=8 --config.data.size=224

  srun purinet train --config purnet_lite --data DUTS-TR.zip -o runs/lite --distributed

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
        "--partial", action="store_true", help="of --init take what fits the network, and say what does not"
    )
    parser.add_argument(
        "--profile",
        type=not_negative,
        default=0,
        metavar="STEPS",
        help="trace so many steps, for TensorBoard and Perfetto",
    )
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
    several = parser.add_argument_group("several processes (docs/clusters.md)")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="this is one of several processes, as Slurm, Kubernetes, Cloud TPU or Open MPI say",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 listens")
    several.add_argument("--processes", type=positive, metavar="N", help="how many there are")
    several.add_argument("--process", type=not_negative, metavar="I", help="which one this is, from 0")
    add_require(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars, and no word on the device")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.training.configurations import load_config

    config = load_config(arguments.config, arguments.overrides)
    place = (arguments.coordinator, arguments.processes, arguments.process)
    if not arguments.distributed and all(part is None for part in place):
        code, message = _train(arguments, config)
        if message:
            print(f"purinet: {message}", file=sys.stderr)
        return code

    from purinet_jax import processes

    # JAX's own heartbeat is 100 s.
    with processes.joined(*place, heartbeat=min(config.loop.timeout / 4 or 100, 100)):
        if not processes.is_first():
            logging.getLogger("purinet_jax").setLevel(logging.WARNING)
            arguments.quiet = True
        try:
            code, message = _train(arguments, config)
        except InputError as error:
            code, message = 2, str(error)
        except KeyboardInterrupt:
            code, message = 130, "interrupted"
        except Exception as error:  # the others must not wait for this process
            logger.exception("process failed")
            code, message = 1, f"{type(error).__name__}: {error}"
        if message:
            processes.end(message, code)
    return code


def _train(arguments: argparse.Namespace, config: Any) -> tuple[int, str | None]:
    """The exit code, and what there is to say where it is not 0."""
    from purinet_jax.devices import describe_devices
    from purinet_jax.memory import keep_freed_memory
    from purinet_jax.training.stopping import NonFiniteLoss, RunEnded
    from purinet_jax.training.train import train

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
            partial=arguments.partial,
            profile=arguments.profile,
            progress=not arguments.quiet,
        )
    except (NonFiniteLoss, RunEnded) as error:
        return 1, str(error)
    return 0, None
