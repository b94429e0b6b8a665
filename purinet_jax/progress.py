"""Progress on standard error: a live bar on a terminal; elsewhere, as in a log file, a line per tenth of the work."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # tqdm takes longer to import than a command without a bar needs
    from tqdm import tqdm


class _Lines:
    """A text file for tqdm that turns each redrawing of the bar into a line of its own."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        line = text.removesuffix("\x1b[A").strip()  # of a second bar, which goes back up to the first
        count, _, _ = line.partition(" [")
        if count and count != self._last:
            self._last = count
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(
    items: Iterable[Any] | None = None, *, total: int | None, shown: bool = True, **options: Any
) -> "tqdm[Any]":
    """Returns a tqdm bar over `items`, or one to be moved by hand if there are none.

    Where standard error is no terminal, it prints one line at the start, one per tenth and one at the end (with an
    unknown `total`: one per minute).

    Args:
      items: what is iterated over.
      total: how many there are, None if that is not known.
      shown: whether anything is printed.
      options: tqdm's own: `desc`, `unit`, `initial`, `leave`.
    """
    from tqdm import tqdm

    if not shown or sys.stderr.isatty():
        return tqdm(items, total=total, disable=not shown, **options)
    interval: dict[str, Any] = {"mininterval": 60}
    if total is not None:
        line = "{desc}: {percentage:3.0f}%, {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        interval = {"mininterval": 0, "miniters": max(1, total // 10), "bar_format": line}
    return tqdm(items, total=total, file=_Lines(), maxinterval=float("inf"), **interval, **options)
