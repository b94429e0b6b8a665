"""`purinet`: parses the command line, configures logging and JAX, and turns errors and signals into exit codes."""

import errno
import os
import sys
from typing import TYPE_CHECKING

from purinet_jax import interrupts

if TYPE_CHECKING:  # everything else is imported once signals are handled
    import argparse
    from collections.abc import Sequence

COMMANDS = ("prepare", "train", "finetune", "predict", "serve", "evaluate", "convert", "export", "benchmark")

_BROKEN_PIPE = 141
"""The exit code that a shell reports for a process that SIGPIPE ends."""


def build_parser() -> "argparse.ArgumentParser":
    """Returns the parser of all commands."""
    import argparse
    from importlib import import_module

    parser = argparse.ArgumentParser(
        prog="purinet", description="PurNet salient object detection: train, predict, evaluate."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        command = import_module(f"purinet_jax.commands.{name}")
        subparser = subparsers.add_parser(
            name,
            help=command.SUMMARY,
            description=command.SUMMARY,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: "Sequence[str] | None" = None) -> int:
    """Runs one command and returns its exit code.

    Args:
      argv: the arguments; by default those of this process, whose signals and standard streams are handled then.
    """
    interrupts.received = interrupts.stopped = None
    if argv is not None:
        return _run_and_report(argv)
    interrupts.handle()
    try:
        _prepare_streams()
        return _run_and_report(argv)
    except KeyboardInterrupt:  # raised between two statements that handle it
        return 128 + (interrupts.received or 2)
    finally:
        interrupts.finish()
        _drop_unprinted()


def _run_and_report(argv: "Sequence[str] | None") -> int:
    """Runs one command and returns its exit code; an error becomes a line on standard error."""
    try:
        code = _run(argv)
        sys.stdout.flush()
        if interrupts.received is not None:  # a library dropped the KeyboardInterrupt
            raise KeyboardInterrupt
    except BrokenPipeError:  # as for other programs, it is no error that the reader has seen enough
        return _BROKEN_PIPE
    except BaseException as error:
        return _report(error)
    return code if code or interrupts.stopped is None else 128 + interrupts.stopped


def _run(argv: "Sequence[str] | None") -> int:
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
    _configure_libraries()
    return arguments.run(arguments)


def _report(error: BaseException) -> int:
    """Prints an error that ends a command and returns the exit code; raises all others again."""
    from purinet_jax.errors import InputError, RunFailure, outcome

    if interrupts.received is not None:  # some libraries turn KeyboardInterrupt into errors of their own
        error = KeyboardInterrupt()
    elif isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        from purinet_jax.files import reason

        where = "standard output" if error.filename is None else error.filename
        error = InputError(f"{where}: {reason(error)}")
    elif not isinstance(error, InputError | RunFailure | KeyboardInterrupt):
        raise error
    code, line = outcome(error)
    if interrupts.received is not None:
        code = 128 + interrupts.received
    try:
        print(f"purinet: {line}", file=sys.stderr)
    except BrokenPipeError:
        return _BROKEN_PIPE
    return code


def _configure_libraries() -> None:
    import logging
    import warnings

    from purinet_jax.errors import escaped

    class OneLine(logging.Formatter):
        def formatMessage(self, record: logging.LogRecord) -> str:
            return escaped(record.message)

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    # Libraries log only warnings; Orbax would log every save.
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("purinet_jax").setLevel(logging.INFO)
    # Orbax also logs the errors that it raises, with tracebacks, and Matplotlib that it has no folder for its cache.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Compiled programs are kept between runs, so that a second run starts at once; without a folder for them, it works.
    if cache := _cache_folder():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    warnings.filterwarnings("ignore", r"Error (reading|writing) persistent compilation cache")
    # With JAX's default of one second, a fast machine would compile a small network at every start.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    # Ended within an import, worker processes leave semaphores, which Python's tracker removes, with a warning.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    # TensorStore and XLA write notes to standard error that Python cannot filter.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _cache_folder() -> str | None:
    """Returns the folder for compiled programs; None if there is no home, or nothing can be written there."""
    from pathlib import Path

    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purinet_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: an unknown user without HOME
        return None
    return str(folder) if os.access(folder, os.W_OK | os.X_OK) else None


def _prepare_streams() -> None:
    """Opens standard streams that are closed, and lets them escape what they cannot encode, as in names of files."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  until the process ends
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _drop_unprinted() -> None:
    """Drops what a standard stream still holds for a reader that has ended; Python would complain about it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
