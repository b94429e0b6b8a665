"""One run in several processes, each with its own devices (`jax.distributed`): how they join, wait and agree."""

import contextlib
import hashlib
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from purinet_jax.errors import InputError, RunFailure, outcome
from purinet_jax.files import reason

_barriers = itertools.count()


@contextlib.contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None, heartbeat: float) -> Iterator[None]:
    """Makes this process one of several; must be entered before JAX is used. Leaving it waits for the others.

    An error ends this process at once (`end`), because a shutdown would wait for processes that wait for this one.

    Args:
      coordinator: `HOST:PORT` at which process 0 listens; 127.0.0.1 and localhost are not reachable from outside.
      processes: how many there are.
      process: the index of this one. None, as for the others: from Slurm, Kubernetes, Cloud TPU or Open MPI.
      heartbeat: seconds without a sign of life after which JAX counts a process as lost and ends the others.

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
        raise InputError(
            f"--distributed: the processes cannot join: {reason(error)} (outside Slurm, Kubernetes, Cloud TPU and Open "
            "MPI give --coordinator, --processes and --process)"
        ) from error
    try:
        yield
    except BaseException as error:
        if not isinstance(error, (InputError, RunFailure, KeyboardInterrupt)):
            traceback.print_exc()
        code, line = outcome(error)
        end(line, code)
    jax.distributed.shutdown()


def end(message: str, code: int) -> NoReturn:
    """Ends this process at once with a line on stderr, whatever its other threads wait for."""
    print(f"purinet: {message}", file=sys.stderr, flush=True)
    os._exit(code)


def is_first() -> bool:
    """Returns whether this is the process that writes logs and files for all."""
    import jax

    return jax.process_index() == 0


def wait_for_all() -> None:
    """Returns once every process has called it as often as this one; raises after half an hour."""
    from jax._src import distributed  # no public name

    if distributed.global_state.client is not None:
        distributed.global_state.client.wait_at_barrier(f"purinet_jax/{next(_barriers)}", 1_800_000)


def from_all(values: Any) -> Any:
    """Stacks a NumPy array of each process, all of one shape, along a leading axis of processes."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return np.asarray(values)[None]
    wait_for_all()  # a sum over processes gives up after half a minute
    return np.asarray(multihost_utils.process_allgather(values))


def check_same(values: Mapping[str, str | bytes]) -> None:
    """Raises InputError, in all processes, if one of the named values differs between them."""
    import numpy as np

    digests = [hashlib.sha256(x.encode() if isinstance(x, str) else x).digest() for x in values.values()]
    gathered = from_all(np.frombuffer(b"".join(digests), np.uint32).reshape(len(digests), -1))
    for index, name in enumerate(values):
        different = np.flatnonzero((gathered[:, index] != gathered[0, index]).any(1)).tolist()
        if different:
            raise InputError(f"{name} in process {', '.join(map(str, different))}: not the same as in process 0")
