"""Watch folders: predict on the images and videos that are added to them, until the process is interrupted."""

import logging
import os
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from purinet_jax.errors import InputError
from purinet_jax.files import reason
from purinet_jax.prediction import inputs
from purinet_jax.prediction.files import Existing, Job, Result, plan, predict_files
from purinet_jax.prediction.rendering import Style

if TYPE_CHECKING:  # imports JAX
    from purinet_jax.prediction.predictor import Predictor

INTERVAL = 1.0
"""Seconds between two looks at the folders."""

# A folder that was changed so shortly before it was listed may change again within one tick of its file system's clock.
_TICK_NS = 2_000_000_000

_Signature = tuple[int, int, int]


def watch(
    predictor: "Predictor",
    folders: Sequence[str],
    output: str | None,
    style: Style,
    *,
    ending: str | None = None,
    existing: Existing = "skip",
    batch_size: int = 1,
    interval: float = INTERVAL,
) -> Generator[Result]:
    """Writes the outputs of the files in folders, and of those that are added later.

    A file is read once its size and modification time are the same at two looks, `interval` seconds apart, and done
    once, or with "overwrite" again when it changes; one that fails is tried again when it changes. Between looks at
    folders in which nothing is added or removed, only modification times are read: the folders', and with "overwrite"
    the files'.

    Args:
      predictor: the network.
      folders: the folders; all below them are watched as well, as `plan` searches them.
      output, ending, existing: as of `plan`.
      style, batch_size: as of `predict_files`.
      interval: seconds between two looks.

    Yields:
      A result for each file; for a subfolder that cannot be read, one whose job has no output, as for outputs that are
        refused later on (the job names the first folder; each look searches the folders until they are not). No end.

    Raises:
      InputError: one of the folders is not there, or cannot be read; or as `predict_files`; or, at first, as `plan`,
        whose later errors are results without an output.
    """
    jobs: dict[str, Job] = {}
    times: dict[str, int] = {}
    seen: dict[str, _Signature] = {}
    failed: dict[str, _Signature] = {}
    done: dict[str, _Signature] = {}
    reported: set[str] = set()
    began, refused = False, ""
    level = inputs.logger.level
    try:
        while True:
            start = time.monotonic()
            if not times or _changed(times):
                times = _modification_times(folders)
                errors: dict[str, str] = {}
                try:
                    planned = plan(
                        folders,
                        output,
                        kind=style.kind,
                        ending=ending,
                        transparent=style.transparent,
                        existing=existing,
                        errors=errors,
                    )
                    jobs = {str(job.source): job for job in planned}
                except InputError as refusal:  # such as two outputs of one name
                    if not began:
                        raise
                    times = {}  # so that the next look plans again
                    if str(refusal) != refused:
                        refused = str(refusal)
                        yield Result(
                            Job(Path(folders[0]), Path()), f"{refusal}; files added later wait until that is changed"
                        )
                else:
                    began, refused = True, ""
                inputs.logger.setLevel(logging.WARNING)  # which files are passed over is said once
                done = {source: signature for source, signature in done.items() if os.path.exists(source)}
                for path, error in errors.items():
                    if path not in folders and error not in reported:  # a folder without images is none
                        reported.add(error)
                        yield Result(Job(Path(path), Path()), error)
            pending = (source for source in jobs if existing == "overwrite" or source not in done)
            now = {source: signature for source in pending if (signature := _signature(source))}
            ready = [
                source
                for source, signature in now.items()
                if seen.get(source) == signature and signature not in (failed.get(source), done.get(source))
            ]
            if ready:
                with closing(
                    predict_files(predictor, [jobs[source] for source in ready], style, batch_size=batch_size)
                ) as results:
                    for result in results:
                        source = str(result.job.source)
                        (done if result.error is None else failed)[source] = now[source]
                        yield result
            seen = now
            time.sleep(max(0.0, interval - (time.monotonic() - start)))
    finally:
        inputs.logger.setLevel(level)


def _signature(path: str) -> _Signature | None:
    """Returns what changes when a file is written or replaced; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _changed(times: dict[str, int]) -> bool:
    """Whether something was added to one of the folders or removed, since `_modification_times` returned `times`."""
    try:
        return any(os.stat(folder).st_mtime_ns != known for folder, known in times.items())
    except OSError:
        return True


def _modification_times(roots: Sequence[str]) -> dict[str, int]:
    """Returns the modification times, ns, of folders and of all below them; -1 of those changed just now.

    Raises InputError if one of `roots` cannot be read.
    """
    times: dict[str, int] = {}
    visited: set[tuple[int, int]] = set()
    pending = list(roots)
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            times[folder] = status.st_mtime_ns if time.time_ns() - status.st_mtime_ns > _TICK_NS else -1
            with os.scandir(folder) as entries:
                pending += [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        except OSError as error:
            if folder in roots:
                raise InputError(f"{folder}: cannot be watched: {reason(error)}") from error
    return times
