"""`purinet`: parses the command line, configures logging and JAX, and turns errors into exit codes."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from purinet_jax.commands import benchmark, convert, evaluate, export, finetune, predict, prepare, serve, train
from purinet_jax.errors import InputError, RunFailure, outcome

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
    """Returns the parser of all commands."""
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
    if arguments.command in ("train", "finetune"):  # argparse does not know the settings
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
    # Libraries log only warnings; Orbax would log every save.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("purinet_jax").setLevel(logging.INFO)
    # Orbax also logs the errors that it raises, with tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Compiled programs are kept between runs, so that a second run starts at once.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purinet_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    # With JAX's default of one second, a fast machine would compile a small network at every start.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    # TensorStore and XLA write notes to standard error that Python cannot filter.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return COMMANDS[arguments.command].run(arguments)
    except (InputError, RunFailure, KeyboardInterrupt) as error:
        code, line = outcome(error)
        print(f"purinet: {line}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
