"""Ends a command on SIGINT (Ctrl-C) and SIGTERM: at any moment, with exit code 128 + signal, without temporary files.

The first signal raises KeyboardInterrupt, so that everything is closed in order. The process ends at once where an
exception would be lost (inside an import, or in a callback of the garbage collector), at a second signal, and if
closing takes longer than `_SECONDS`.
"""

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

temporary_paths: set[str] = set()
"""Files and folders to remove if the process ends before their owners can remove them."""

received: int | None = None
"""The signal that ends the command, for which KeyboardInterrupt was raised."""

stopped: int | None = None
"""The signal that ended in order what the command does, such as training; set by those who handle it themselves."""

_SECONDS = 10
_KINDS = (signal.SIGINT, signal.SIGTERM)


def handle() -> None:
    """Installs the handlers, except for a signal that is ignored, as a shell sets SIGINT for background processes."""
    atexit.register(_skip_destructors)  # before others are, so that it runs after them
    hook = sys.unraisablehook

    def end_if_lost(unraisable: Any) -> None:
        if received is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
            _end(received)
        hook(unraisable)

    sys.unraisablehook = end_if_lost
    for kind in _KINDS:
        if signal.getsignal(kind) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(kind, _interrupt)


def _skip_destructors() -> None:
    """Ends an interrupted process before the destructors of XLA, which crash while its threads compile."""
    if received is not None:
        os._exit(128 + received)


def finish() -> None:
    """Removes what is left and lets signals have their usual effect, because handlers do not run while Python ends."""
    _remove_temporary_paths()
    for kind in _KINDS:
        if signal.getsignal(kind) is _interrupt:
            signal.signal(kind, signal.SIG_DFL)


def _interrupt(kind: int, frame: FrameType | None) -> None:
    global received
    if received is not None or stopped is not None or _importing(frame):
        _end(kind)
    received = kind
    signal.signal(signal.SIGALRM, lambda *_: _end(kind))
    signal.alarm(_SECONDS)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported; compiled modules turn KeyboardInterrupt into other errors."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end(kind: int) -> None:
    """Ends this process and its workers at once."""
    for each in _KINDS:
        signal.signal(each, signal.SIG_IGN)
    # The module may not be imported, or not entirely.
    children = getattr(sys.modules.get("multiprocessing"), "active_children", tuple)
    try:
        for process in children():
            process.terminate()
        _remove_temporary_paths()
        with suppress(OSError):  # closed
            os.write(2, b"purinet: interrupted\n")
    finally:
        os._exit(128 + kind)


def remove_temporary(path: str) -> None:
    """Removes a file or folder, if it is still there, and strikes it off `temporary_paths`."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    except OSError:  # renamed or removed meanwhile
        pass
    temporary_paths.discard(path)


def _remove_temporary_paths() -> None:
    for path in list(temporary_paths):
        remove_temporary(path)
