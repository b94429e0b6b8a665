"""`purinet finetune`: trains a network further on pairs of your own."""

import argparse
from pathlib import Path

from purinet_jax.commands.arguments import add_checkpoint, add_object_labels, add_require, positive, say_devices
from purinet_jax.errors import InputError

SUMMARY = "Fine-tune a network on pairs of your own."
EXAMPLES = """examples:
  purinet finetune my_pairs/ -o runs/mine                   # from the package's weights
  purinet predict photo.jpg --checkpoint runs/mine
  purinet finetune my_pairs.zip -o runs/quick --size 224 --steps 200
  purinet finetune my_pairs/ -o runs/authors --checkpoint stage3.pth --config.batch_size=4

The pairs are a folder of images and a folder of masks, or a zip of the two. 15 % of them are held out for validation,
before the first step and every 30 steps; training ends early once the error no longer falls, and the best weights are
used for prediction. The same command again resumes the run. SIGTERM and Ctrl-C save first."""

# Settings that the weights or other arguments determine.
_DECIDED = {
    "model.": "the network is that of the weights (--checkpoint)",
    "steps=": "give --steps",
    "data.size=": "give --size",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("data", type=Path, metavar="DIR|ZIP", help="pairs of images and masks")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="the run's folder")
    add_checkpoint(parser, "weights to start from: ")
    parser.add_argument(
        "--size", type=positive, help="side that images are resized to (default: what the weights are for)"
    )
    parser.add_argument("--steps", type=positive, help="the most steps (default 600), of 8 images each")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable pairs out")
    add_object_labels(parser)
    add_require(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars, and no word on the device")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    for override in arguments.overrides:
        for key, reason in _DECIDED.items():
            if override.startswith(f"--config.{key}"):
                raise InputError(f"{override.partition('=')[0]}: {reason}")

    from purinet_jax.devices import describe_devices
    from purinet_jax.memory import keep_freed_memory
    from purinet_jax.training.configurations import load_config
    from purinet_jax.training.finetune import finetune

    config = load_config("finetune", arguments.overrides)
    config.steps = arguments.steps or config.steps
    keep_freed_memory()
    say_devices(describe_devices(arguments.require), arguments.quiet)
    finetune(
        config,
        arguments.data,
        arguments.output,
        checkpoint=arguments.checkpoint,
        size=arguments.size,
        skip_bad=arguments.skip_bad,
        object_labels=arguments.object_labels,
        progress=not arguments.quiet,
    )
    return 0
