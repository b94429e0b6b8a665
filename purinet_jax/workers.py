"""Runs a function over many items ahead of their use, in threads or processes, and returns results in order.

Only the main process handles Ctrl-C; worker processes end with it.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from purinet_jax.errors import InputError

# How many items each worker process is ahead.
_AHEAD = 4

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Shared = TypeVar("_Shared")


def in_order(
    submit: Callable[[_Item], Future[_Result]],
    items: Iterable[_Item],
    ahead: int,
) -> Iterator[_Result]:
    """Yields the result for each item, in order, with up to `ahead` more submitted.

    Args:
      submit: starts the work on an item.
      items: read only as they are submitted, so they may be many and large.
      ahead: at least 0.
    """
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def worker_processes(
    workers: int, function: Callable[[_Shared, _Item], _Result], shared: _Shared
) -> Iterator[Callable[[Iterable[_Item]], Iterator[_Result]]]:
    """Gives a function that maps items to `function(shared, item)`, in order, computed ahead by processes.

    Args:
      workers: how many processes; 0 to compute in this one.
      function: defined in a module, because processes import it.
      shared: sent once to each process.

    Raises:
      InputError: a process was killed.
    """
    if workers == 0:
        yield lambda items: (function(shared, item) for item in items)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # this process has threads, which forking breaks
    pool = ProcessPoolExecutor(workers, context, _begin, (function, shared))

    def submit(item: _Item) -> Future[_Result]:
        with _interrupts_blocked():  # the first items start processes
            return pool.submit(_work, item)

    try:
        yield lambda items: in_order(submit, items, _AHEAD * workers)
    except BrokenProcessPool as error:
        raise InputError("a worker process was killed, perhaps because memory ran out") from error
    except KeyboardInterrupt:
        for process in set(multiprocessing.active_children()) - others:  # otherwise each would finish its item first
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_work_of_process: tuple[Callable[[Any, Any], Any], Any]


def _begin(function: Callable[[Any, Any], Any], shared: Any) -> None:
    """Initialises a worker process."""
    global _work_of_process
    _work_of_process = function, shared
    # Ctrl-C reaches all processes of the group; the main one stops its workers without tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _work(item: Any) -> Any:
    function, shared = _work_of_process
    return function(shared, item)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks Ctrl-C in processes that are started meanwhile, which inherit it, even while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Python starts it with the first process, and unblocks interrupts then.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends this process with the main one, which cannot stop its workers if it is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
