"""Locks on folders that one process at a time may write to."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from purinet_jax.errors import InputError
from purinet_jax.files import reason


@contextlib.contextmanager
def only_process(folder: Path, doing: str) -> Iterator[None]:
    """Locks a folder, made if missing, for this process; the system unlocks it however the process ends.

    Args:
      folder: the folder; it gets a file `lock`.
      doing: what processes lock it for, for the error.

    Raises:
      InputError: another process has locked it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / "lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {reason(error)}") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is {doing}") from None
        yield
