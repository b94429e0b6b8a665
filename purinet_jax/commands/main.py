"""`purinet`: chooses the command, sets up what all have in common, and makes exit codes of what they raise."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from purinet_jax.commands import benchmark, convert, evaluate, export, finetune, predict, prepare, serve, train
from purinet_jax.errors import InputError

COMMANDS = {
    "prepare": prepare,
    "train": train,
    "finetune": finetune,
    "predict": predict,
    "serve": serve,
    "evaluate": evaluate,
    "convert": convert,
    "export": export,
    "benchmark": benchmark,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="purinet", description="PurNet salient object detection: train, predict, evaluate."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.SUMMARY,
            description=command.SUMMARY,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in ("train", "finetune"):  # argparse cannot know the settings
        arguments.overrides = [item for item in rest if item.startswith("--config.")]
        rest = [item for item in rest if item not in arguments.overrides]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.version:
        from purinet_jax.version import __version__

        print(__version__)
        return 0
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    # Libraries' own chatter (Orbax logs each save) is not the user's; ours is.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("purinet_jax").setLevel(logging.INFO)
    # Orbax logs the errors that it raises too, with their tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Compiled programs are kept between runs: a run that goes on, or a second picture, starts at once.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purinet_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    # By JAX's default of a second, a fast machine would compile a small network at each start.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    # TensorStore and XLA write notes of their own to stderr before Python can filter them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return COMMANDS[arguments.command].run(arguments)
    except InputError as error:
        print(f"purinet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("purinet: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
