"""How a run ends before its last step: when it is asked to, when validation gains no more, or when something from
outside ends it, which is said in one line.
"""

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

from purinet_jax.errors import InputError
from purinet_jax.processes import is_first
from purinet_jax.weights.runs import FOLDER, whole_steps

logger = logging.getLogger(__name__)


class NonFiniteLoss(FloatingPointError):
    """Training met NaN or Inf; the message names the term, the step and the files, in one line."""


class RunEnded(RuntimeError):
    """Something outside ended a run (a full disk, a lost process, no memory); the message is one line."""


@contextlib.contextmanager
def failures_in_words(output: Path) -> Iterator[Callable[[str], None]]:
    """Makes a `RunEnded` of what the system, the devices and Orbax raise; its function takes what is being done."""
    stage = "starting"

    def doing(what: str) -> None:
        nonlocal stage
        stage = what

    def ended(reason: str) -> RunEnded:
        steps = whole_steps(output / FOLDER)
        last = f"the last whole checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
        return RunEnded(f"{output}: {stage}: {reason}; {last}")

    hook = sys.unraisablehook

    def without_echoes(unraisable: Any) -> None:
        # Each file that Orbax could not write says so once more, with a traceback, to a loop that has ended.
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = without_echoes
    try:
        yield doing
    except (InputError, NonFiniteLoss):
        raise
    except Exception as error:
        # Orbax hands on errors of threads and of C++ as other kinds; the words stay.
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        text = " ".join(str(cause) for cause in causes)
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "No space left on device" in text or "File too large" in text or "Disk quota exceeded" in text:
            raise ended("no space is left on the disk") from error
        if isinstance(error, jax.errors.JaxRuntimeError):
            if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
                raise ended(f"out of memory: {line} (config.loop.remat, config.accumulate, a smaller batch)") from error
            if jax.process_count() > 1:
                raise ended(f"another process was lost: {line}") from error
        if isinstance(error, OSError):
            raise ended(f"{error.strerror or line}{f': {error.filename}' if error.filename else ''}") from error
        raise
    finally:
        sys.unraisablehook = hook


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag that the loop reads after each step; a second one has its usual effect.

    Several processes must stop after the same step: there JAX receives SIGTERM, in any of them, and agrees on one.
    """

    requested = False

    def __enter__(self) -> "StopRequest":
        kinds = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {kind: signal.getsignal(kind) for kind in kinds}
        for kind in self._before:
            signal.signal(kind, self._request)
        return self

    def after(self, step: int) -> bool:
        """Whether the run stops after this step; to be asked after every step."""
        if jax.process_count() == 1:
            return self.requested
        stopping = reached_preemption_sync_point(step)
        if stopping and is_first():
            logger.warning("SIGTERM: saving after step %d", step)
        return stopping

    def _request(self, kind: int, frame: FrameType | None) -> None:
        logger.warning("%s: saving after this step", signal.Signals(kind).name)
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


def out_of_patience(validated: Sequence[Sequence[float]], patience: int) -> bool:
    """Whether the last `patience` errors of [step, error] are all no lower than the lowest before them; 0: never."""
    errors = [error for _, error in validated]
    return 0 < patience < len(errors) and min(errors[-patience:]) >= min(errors[:-patience])
