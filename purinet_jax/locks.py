"""Folders that one process at a time may write to: a training run's, and one in which a data set is prepared."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from purinet_jax.errors import InputError


@contextlib.contextmanager
def only_process(folder: Path, doing: str) -> Iterator[None]:
    """Holds a folder, made if missing, for this process; the system lets go of it however the process ends.

    Raises InputError where another process holds it, of which `doing` says what it does, or nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / "lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error.strerror}") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is {doing}") from None
        yield
