"""A run that no longer moves says where it stands and ends: data that do not come, a step whose devices wait for each
other for ever. Python cannot interrupt either, so a thread looks at the clock.
"""

import threading
import time

from purinet_jax.processes import end

_COMPILING = 1800.0


class Watchdog:
    """Ends the process, with one line and exit code 1, when a stage takes longer than it may.

    A stage in which something is compiled may take half an hour, if not longer.

    Args:
      seconds: how long each stage may take; 0 for as long as it likes.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._stage, self._limit, self._since = "", seconds, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def stage(self, stage: str, compiles: bool = False) -> None:
        """What the run does from now on, as it stands in "… has not ended after 600 s"."""
        limit = max(self.seconds, _COMPILING) if compiles else self.seconds
        self._stage, self._limit, self._since = stage, limit, time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.stage("starting", compiles=True)
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            stage, limit, since = self._stage, self._limit, self._since
            if time.monotonic() - since > limit:
                end(
                    f"{stage} has not ended after {limit:g} s (config.loop.timeout), so the run ends; "
                    "started again it goes on from the last checkpoint",
                    1,
                )
