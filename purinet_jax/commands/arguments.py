"""Arguments of several commands: numbers in a range, named paths, how a network is run, and the required device."""

import argparse
import logging
from pathlib import Path

logger = logging.getLogger(__name__)


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of commands that predict."""
    parser.add_argument("--batch", type=positive, default=1, help="images at a time (default 1)")
    parser.add_argument(
        "--size", type=positive, help="side that images are resized to (default: that of training, or 320)"
    )
    add_require(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress, and no line on the device")


def add_checkpoint(parser: argparse.ArgumentParser, use: str = "") -> None:
    """Adds the argument of commands that load one network; its help starts with `use`."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="RUN|FILE|NAME",
        help=f"{use}a run's folder, a file of weights, or one of the package's networks: context (the default), lite",
    )


def add_object_labels(parser: argparse.ArgumentParser) -> None:
    """Adds the argument of commands that read masks."""
    parser.add_argument(
        "--object-labels",
        type=labels,
        default=(),
        metavar="N,N,…",
        help="values of masks that are the object, of palettes their indices (default: found out from the masks)",
    )


def add_require(parser: argparse.ArgumentParser) -> None:
    """Adds the argument of commands that use an accelerator if there is one."""
    parser.add_argument("--require", choices=("gpu", "tpu"), help="refuse to run on anything else")


def say_devices(description: str, quiet: bool = False) -> None:
    """Logs what a command runs on."""
    if not quiet:
        logger.info("running on %s", description)


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, exclusive."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def not_negative(text: str) -> int:
    """An integer of at least 0."""
    value = _integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text or 'nothing'} is not an integer") from None


def labels(text: str) -> tuple[int, ...]:
    """Integers of at least 0, such as "1,2"."""
    return tuple(not_negative(part) for part in text.split(","))


def named(text: str) -> tuple[str | None, Path]:
    """Splits NAME=PATH; the name is None for a path alone, which may contain an equals sign itself."""
    name, _, path = text.partition("=")
    if not name or not path or "/" in name or Path(text).exists():
        return None, Path(text)
    return name, Path(path)
