"""The stage that a run is in, and the end of a process in which a stage does not end."""

import threading

from purinet_jax.processes import end

_COMPILING = 1800.0
_TICK = 1.0


class Watchdog:
    """Knows the current stage, and ends the process with one line and exit code 1 when the stage takes too long.

    Python cannot interrupt a read or a device that waits, so a thread ends the process. It counts ticks of its own, so
    that time in which the process is suspended does not count.

    Attributes:
      stage: what the run does now, as it stands in messages.
    """

    def __init__(self, seconds: float) -> None:
        """`seconds` is what each stage may take, 0 for no limit; one that compiles may take at least half an hour."""
        self.stage = "starting"
        self._seconds = seconds
        self._tick = min(_TICK, seconds / 4)
        self._ticks = self._first_tick = 0
        self._limit = seconds
        self._closed = threading.Event()

    def enter(self, stage: str, compiles: bool = False) -> None:
        """Begins a stage, which ends the one before."""
        self.stage, self._first_tick = stage, self._ticks
        self._limit = max(self._seconds, _COMPILING) if compiles else self._seconds

    def _watch(self) -> None:
        while not self._closed.wait(self._tick):
            self._ticks += 1
            if (self._ticks - self._first_tick) * self._tick >= self._limit:
                message = (
                    f"{self.stage} has not ended after {self._limit:g} s (config.loop.timeout), so the run ends; "
                    "started again it goes on from the last checkpoint"
                )
                end(message, 1)

    def __enter__(self) -> "Watchdog":
        self.enter("starting", compiles=True)
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
