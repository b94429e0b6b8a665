"""Ends of a run before its last step: by request, by a validation that no longer improves, and by failures."""

import contextlib
import errno
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

from purinet_jax import interrupts
from purinet_jax.errors import InputError, RunFailure
from purinet_jax.files import one_line, reason
from purinet_jax.processes import is_first
from purinet_jax.training.watchdog import Watchdog
from purinet_jax.weights.runs import FOLDER, whole_steps

logger = logging.getLogger(__name__)


_UNUSABLE_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


class NonFiniteLoss(RunFailure):
    """A loss or gradient is NaN or Inf; the message names the term, the step and the files."""


class RunEnded(RunFailure):
    """The machine failed a run (a full disk, too little memory, a lost process); the message names the stage."""


@contextlib.contextmanager
def failures_in_words(output: Path, watchdog: Watchdog) -> Iterator[None]:
    """Raises `RunEnded`, with the watchdog's stage, for what the system, the devices and Orbax raise inside."""
    hook = sys.unraisablehook

    def without_echoes(unraisable: Any) -> None:
        # Orbax repeats the error of each file it could not write, with a traceback, once its event loop has ended.
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = without_echoes
    try:
        yield
    except (InputError, RunFailure):
        raise
    except Exception as error:
        if watchdog.stage == "starting" and isinstance(error, OSError) and error.errno in _UNUSABLE_PATH:
            raise InputError(f"{error.filename}: {reason(error)}") from error
        why = _failure(error)
        if why is None:
            raise
        steps = whole_steps(output / FOLDER)
        last = f"the last complete checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
        raise RunEnded(f"{output}: {watchdog.stage}: {why}; {last}") from error
    finally:
        sys.unraisablehook = hook


def _failure(error: Exception) -> str | None:
    """What failed, in one line, or None if the machine is not to blame."""
    # Orbax re-raises errors of threads and of C++ as other types and keeps the message.
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    text = " ".join(map(str, causes))
    if any(full in text for full in ("No space left on device", "File too large", "Disk quota exceeded")):
        return "no space is left on the disk"
    if isinstance(error, jax.errors.JaxRuntimeError):
        if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
            return f"out of memory: {one_line(error)} (config.loop.remat, config.accumulate, a smaller batch)"
        if jax.process_count() > 1:
            return f"another process was lost: {one_line(error)}"
    if isinstance(error, OSError):
        return reason(error) + (f": {error.filename}" if error.filename else "")
    return None


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag that the loop reads after each step; a second one has its usual effect.

    Several processes must stop after the same step: there JAX receives SIGTERM, in any of them, and agrees on the step.
    """

    def __enter__(self) -> "StopRequest":
        self._requested = False
        kinds = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {kind: signal.getsignal(kind) for kind in kinds}
        for kind in self._before:
            signal.signal(kind, self._request)
        return self

    def after(self, step: int) -> bool:
        """Returns whether the run stops after this step; must be called after every step."""
        if jax.process_count() == 1:
            return self._requested
        stopping = reached_preemption_sync_point(step)
        if stopping and is_first():
            logger.warning("SIGTERM: saving after step %d", step)
        return stopping

    def _request(self, kind: int, frame: FrameType | None) -> None:
        logger.warning("%s: saving after this step", signal.Signals(kind).name)
        self._requested = True
        if kind == signal.SIGINT:  # after SIGTERM, as clusters send it, a run that is saved has succeeded
            interrupts.stopped = kind
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)


def out_of_patience(validated: Sequence[Sequence[float]], patience: int) -> bool:
    """Whether none of the last `patience` errors of [step, error] is below the lowest before them; 0: never."""
    errors = [error for _, error in validated]
    return 0 < patience < len(errors) and min(errors[-patience:]) >= min(errors[:-patience])
