"""`purinet finetune`: a network that finds objects already, made better on pairs of one's own."""

import argparse
import sys
from pathlib import Path

from purinet_jax.commands.arguments import add_checkpoint, add_require, positive, say_devices
from purinet_jax.errors import InputError

SUMMARY = "Make a network better on pairs of your own."
EXAMPLES = """examples:
  purinet finetune my_pairs/ -o runs/mine                   # from the package's weights
  purinet predict photo.jpg --checkpoint runs/mine
  purinet finetune my_pairs.zip -o runs/quick --size 224 --steps 200
  purinet finetune my_pairs/ -o runs/authors --checkpoint stage3.pth --config.batch_size=4

The pairs are a folder of images beside a folder of masks, or a zip of the two. 15 % of them are held out: the error on
them is measured before, and every 30 steps; training ends early where it no longer falls, and the best weights are
what is predicted with. The same command again goes on where it stopped. SIGTERM and Ctrl-C save first."""

# Settings that the weights or other arguments decide.
_DECIDED = {
    "model.": "the network is that of the weights (--checkpoint)",
    "steps=": "give --steps",
    "data.size=": "give --size",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("data", type=Path, metavar="DIR|ZIP", help="pairs: images beside their masks")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="the run's folder")
    add_checkpoint(parser, "weights to start from: ")
    parser.add_argument(
        "--size", type=positive, help="side that images are squashed to (default: what the weights are for)"
    )
    parser.add_argument("--steps", type=positive, help="steps at most (default 600), of 8 images each")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable pairs out")
    add_require(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars, and no word on the device")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    for override in arguments.overrides:
        for key, reason in _DECIDED.items():
            if override.startswith(f"--config.{key}"):
                raise InputError(f"{override.partition('=')[0]}: {reason}")

    from purinet_jax.training.configurations import load_config

    config = load_config("finetune", arguments.overrides)
    config.steps = arguments.steps or config.steps

    from purinet_jax.devices import describe_devices
    from purinet_jax.memory import keep_freed_memory
    from purinet_jax.training.finetune import finetune
    from purinet_jax.training.stopping import NonFiniteLoss

    keep_freed_memory()
    say_devices(describe_devices(arguments.require), arguments.quiet)
    try:
        finetune(
            config,
            arguments.data,
            arguments.output,
            checkpoint=arguments.checkpoint,
            size=arguments.size,
            skip_bad=arguments.skip_bad,
            progress=not arguments.quiet,
        )
    except NonFiniteLoss as error:
        print(f"purinet: {error}", file=sys.stderr)
        return 1
    return 0
