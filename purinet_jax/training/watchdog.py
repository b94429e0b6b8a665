"""The stage that a run is in, and the end of a process in which a stage does not end."""

import threading

from purinet_jax.processes import end

_COMPILING = 1800.0


class Watchdog:
    """Knows the current stage, and ends the process with one line and exit code 1 when the stage takes too long.

    Python cannot interrupt a read or a device that waits, so a timer's thread ends the process.

    Attributes:
      stage: what the run does now, as it stands in messages.
    """

    def __init__(self, seconds: float) -> None:
        """`seconds` is what each stage may take, 0 for no limit; one that compiles may take at least half an hour."""
        self.stage = "starting"
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def enter(self, stage: str, compiles: bool = False) -> None:
        """Begins a stage, which ends the one before."""
        self._cancel()
        self.stage = stage
        if self._seconds:
            limit = max(self._seconds, _COMPILING) if compiles else self._seconds
            message = (
                f"{stage} has not ended after {limit:g} s (config.loop.timeout), so the run ends; "
                "started again it goes on from the last checkpoint"
            )
            self._timer = threading.Timer(limit, end, (message, 1))
            self._timer.daemon = True
            self._timer.start()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> "Watchdog":
        self.enter("starting", compiles=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()
