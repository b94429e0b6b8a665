"""What worker processes have in common, whatever they work on: Ctrl-C is left to the main process; they end with it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


def begin_worker() -> None:
    """Runs first in each worker process (an executor's `initializer`)."""
    # Ctrl-C goes to the whole group of processes; the main one stops its workers, in order and without tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C: not even before they have begun, while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Python starts it with the first process, and unblocks interrupts there.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """A main process that is killed cannot stop its workers; without this they would wait for it forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
