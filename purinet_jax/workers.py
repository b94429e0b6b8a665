"""What every worker process does first, whatever it works on: leave Ctrl-C to the main process, and end with it."""

import multiprocessing
import os
import signal
import threading


def begin_worker() -> None:
    """Runs first in each worker process (an executor's `initializer`)."""
    # Ctrl-C goes to the whole group of processes; the main one stops its workers, in order and without tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    """A main process that is killed cannot stop its workers; without this they would wait for it forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
