"""Work that is done ahead by others and taken in order: by threads, or by processes that share what they work on.
Ctrl-C is left to the main process; worker processes end with it.
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

# Items that each worker process is ahead of what is taken.
_AHEAD = 4

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Shared = TypeVar("_Shared")


def in_order(
    submit: Callable[[_Item], Future[_Result]],
    items: Iterable[_Item],
    ahead: int,
) -> Iterator[_Result]:
    """The result for each item, in order, up to `ahead` of them under way or waiting to be taken.

    Args:
      submit: item → its result to be.
      items: taken no sooner than they are submitted, so that they may be many and large.
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
    """Gives a function: items → `function(shared, item)` of each, in order, made ahead by processes.

    Args:
      workers: how many processes; 0 for none but this one.
      function: of a module, since processes import it.
      shared: sent to each process once, where sending it with each item would take long.

    Raises:
      InputError: a process was ended from outside.
    """
    if workers == 0:
        yield lambda items: (function(shared, item) for item in items)
        return
    # Not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (function, shared))

    def submit(item: _Item) -> Future[_Result]:
        with _interrupts_blocked():  # the first items start processes
            return pool.submit(_work, item)

    try:
        yield lambda items: in_order(submit, items, _AHEAD * workers)
    except BrokenProcessPool as error:
        raise InputError(f"workers: one of {workers} was ended from outside, perhaps for want of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


_work_of_process: tuple[Callable[[Any, Any], Any], Any]


def _begin(function: Callable[[Any, Any], Any], shared: Any) -> None:
    """Runs first in each worker process."""
    global _work_of_process
    _work_of_process = function, shared
    # Ctrl-C goes to the whole group of processes; the main one stops its workers, in order and without tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _work(item: Any) -> Any:
    function, shared = _work_of_process
    return function(shared, item)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
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
