"""One run in several processes, each with devices of its own (`jax.distributed`): how they join, how they make sure
that all mean the same, and how all of them end, each with one line, when one of them is lost.

JAX's own end of a process that has lost the others is a page of notes and a stack of addresses, written by C++ as it
aborts. That is why what is not Python's on stderr passes through a small process that outlives this one, and puts one
line in the place of it (`python -m purinet_jax.processes`).
"""

import contextlib
import hashlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

from purinet_jax.errors import InputError

# Under these keys of the coordinator's store a process leaves its last words, and the others that they have read them.
_WORDS, _READ = "purinet_jax/last_words", "purinet_jax/read"
# What the filter of stderr is told when this process has said itself why it ends.
_SAID = b"\0said\n"
_waits = itertools.count()
# Seconds that are left to the others to read why this process ends.
_PATIENCE = 10.0


@contextlib.contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None, heartbeat: float) -> Iterator[None]:
    """Makes this process one of several; call it before JAX is used. At the end all of them wait for each other.

    Args:
      coordinator: `HOST:PORT` at which process 0 listens; one on 127.0.0.1 or localhost listens there only.
      processes: how many there are.
      process: which of them this is, from 0. What is None is found out from Slurm, Kubernetes, Cloud TPU or Open MPI.
      heartbeat: seconds without a sign of life after which a process counts as lost.

    Raises:
      InputError: they cannot join.
    """
    import jax

    bind = None
    if coordinator is not None:
        host, separator, port = coordinator.rpartition(":")
        if not separator or not port.isdigit():
            raise InputError(f"--coordinator {coordinator}: not HOST:PORT")
        bind = coordinator if host in ("127.0.0.1", "localhost") else None
    if process is not None and processes is not None and not 0 <= process < processes:
        raise InputError(f"--process {process}: must be from 0 to {processes - 1}")
    timeout = max(int(heartbeat), 1)
    with _native_notes_filtered():
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                coordinator_bind_address=bind,
                initialization_timeout=max(timeout, 300),
                heartbeat_timeout_seconds=timeout,
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"--distributed: the processes cannot join: {reason} (outside Slurm, Kubernetes, Cloud TPU and Open "
                "MPI give --coordinator, --processes and --process)"
            ) from error
        threading.Thread(target=_listen, name="last words of others", daemon=True).start()
        yield
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is the process that writes what one process writes for all."""
    import jax

    return jax.process_index() == 0


def wait_for_all() -> None:
    """Returns once all processes have called it, as often as this one has, or raises after half an hour."""
    client = _client()
    if client is not None:
        client.wait_at_barrier(f"purinet_jax/waiting/{next(_waits)}", 1_800_000)


def check_same(values: Mapping[str, str | bytes]) -> None:
    """Raises InputError, in all processes, where one of the named values differs between them."""
    import numpy as np
    from jax.experimental import multihost_utils

    wait_for_all()
    digests = [
        hashlib.sha256(value.encode() if isinstance(value, str) else value).digest() for value in values.values()
    ]
    ours = np.frombuffer(b"".join(digests), np.uint32).reshape(len(digests), -1)
    gathered = np.asarray(multihost_utils.process_allgather(ours))
    for number, name in enumerate(values):
        different = [str(i) for i in range(1, len(gathered)) if (gathered[i, number] != gathered[0, number]).any()]
        if different:
            raise InputError(f"{name} in process {', '.join(different)}: not the same as in process 0")


def from_all(values: Any) -> Any:
    """A NumPy array of each process, all of one shape, as one with a leading axis of processes."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    return np.asarray(values)[None] if jax.process_count() == 1 else multihost_utils.process_allgather(values)


def end(message: str, code: int) -> NoReturn:
    """Ends this process at once with a line on stderr, whatever its other threads wait for, and tells the others."""
    # Written first: should JAX abort this process meanwhile, the line is there, and there only once.
    with contextlib.suppress(OSError):
        os.write(2, _SAID if _filtered else b"")
    print(f"purinet: {message}", file=sys.stderr, flush=True)
    client = _client()
    if client is not None:
        # In a thread: where the coordinator is gone there may be no answer.
        telling = threading.Thread(target=_tell, args=(client, message), daemon=True)
        telling.start()
        telling.join(_PATIENCE)
    os._exit(code)


_filtered = False


def _client() -> Any:
    """What talks to the coordinator; None where there is one process. JAX has no public name for it."""
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed

    return distributed.global_state.client


def _tell(client: Any, message: str) -> None:
    import jax

    ours, count = jax.process_index(), jax.process_count()
    with contextlib.suppress(Exception):
        client.key_value_set(f"{_WORDS}/{ours}", message)
        # The store ends with process 0; that one waits.
        limit = time.monotonic() + _PATIENCE / 2
        while ours == 0 and time.monotonic() < limit and len(client.key_value_dir_get(_READ)) < count - 1:
            time.sleep(0.05)


def _listen() -> None:
    """Ends this process when another one has left its last words."""
    import jax

    ours = jax.process_index()
    while True:
        time.sleep(0.5)
        client = _client()
        if client is None:
            return
        try:
            words = [(int(key.rpartition("/")[2]), text) for key, text in client.key_value_dir_get(_WORDS)]
        except Exception:  # no coordinator: JAX ends this process by itself
            continue
        others = [(number, text) for number, text in words if number != ours]
        if others and len(others) == len(words):
            number, text = others[0]
            with contextlib.suppress(Exception):
                client.key_value_set(f"{_READ}/{ours}", "")
            with contextlib.suppress(OSError):
                os.write(2, _SAID)
            print(f"purinet: process {number} has ended, and so does this one: {text}", file=sys.stderr, flush=True)
            os._exit(1)


@contextlib.contextmanager
def _native_notes_filtered() -> Iterator[None]:
    """What C++ writes to stderr passes through `filter_notes`; Python's own goes straight to where it went before."""
    global _filtered
    sys.stderr.flush()
    straight = os.dup(2)
    before = sys.stderr
    command = [sys.executable, "-m", "purinet_jax.processes"]
    filtering = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=straight)
    assert filtering.stdin is not None
    os.dup2(filtering.stdin.fileno(), 2)
    filtering.stdin.close()
    if before.fileno() == 2:
        sys.stderr = os.fdopen(straight, "w", 1, before.encoding, "backslashreplace", closefd=False)
        for handler in _handlers_on(before):
            handler.setStream(sys.stderr)
    _filtered = True
    try:
        yield
    finally:
        _filtered = False
        sys.stderr.flush()
        os.dup2(straight, 2)
        for handler in _handlers_on(sys.stderr):
            handler.setStream(before)
        sys.stderr = before
        os.close(straight)
        filtering.wait()


def _handlers_on(stream: Any) -> list[Any]:
    import logging

    return [x for x in logging.getLogger().handlers if isinstance(x, logging.StreamHandler) and x.stream is stream]


# The C++ files whose notes are about processes that come and go.
_ABOUT_PROCESSES = re.compile(r"[IWEF]\d{4} \S+ +\d+ (coordination_\w+|preemption_\w+|client|distributed_\w+)\.(cc|h):")
_NOTE = re.compile(r"[IWEF]\d{4} \S+ +\d+ \w+\.(cc|h):")


def filter_notes(source: BinaryIO, sink: BinaryIO) -> None:
    """Copies lines, but for notes on processes that come and go; where JAX has ended the process, one line says so."""
    notes: list[str] = []
    quiet = fatal = said = False
    for line in source:
        text = line.decode(errors="replace")
        said = said or line.endswith(_SAID)
        fatal = fatal or "Terminating process because the JAX distributed service" in text
        if _NOTE.match(text):
            quiet = _ABOUT_PROCESSES.match(text) is not None
        if quiet:
            notes.append(text)
        elif not (said or fatal):
            sink.write(line)
            sink.flush()
    if fatal and not said:
        sink.write(f"purinet: {_who_was_lost(''.join(notes))}\n".encode())
        sink.flush()


def _who_was_lost(notes: str) -> str:
    lost = re.search(r"stopped sending heartbeats\):\s*((?:\S*\d+\s*\n)+)", notes)
    if lost is not None:
        who = "process " + ", ".join(re.findall(r"(\d+)\s*\n", lost[1]))
    else:
        who = "process 0, the coordinator," if "PollForError" in notes else "another process"
    return f"{who} was lost, so this one ends; start all of them again to go on from the last checkpoint"


if __name__ == "__main__":
    for kind in (signal.SIGINT, signal.SIGTERM):  # this process ends with the one whose notes it reads
        signal.signal(kind, signal.SIG_IGN)
    filter_notes(sys.stdin.buffer, sys.stderr.buffer)
