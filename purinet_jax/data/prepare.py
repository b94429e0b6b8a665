"""Builds a published data set for TFDS from a user's downloads. A set appears complete or not at all."""

import contextlib
import io
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from purinet_jax.data.pairs import Pairs, bad_pairs
from purinet_jax.data.sets import SETS, VERSION, SalientSet
from purinet_jax.data.sources import find_splits
from purinet_jax.data.storage import prepared_splits
from purinet_jax.errors import InputError
from purinet_jax.files import check_output_folder, reason
from purinet_jax.interrupts import temporary_paths
from purinet_jax.locks import only_process

logger = logging.getLogger(__name__)


def default_output() -> Path:
    """Returns the default folder for sets: `$XDG_DATA_HOME/purinet_jax`, or `~/.local/share/purinet_jax`.

    Raises InputError if the user has no home.
    """
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "purinet_jax"
    except RuntimeError:
        raise InputError("there is no home folder to keep data sets in; name one with --output") from None


def prepare(
    name: str,
    data: str | Path,
    output: str | Path | None = None,
    *,
    skip_bad: bool = False,
    object_labels: Sequence[int] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Builds one of the seven data sets.

    Args:
      name: such as "duts" or "DUT-OMRON".
      data: a folder or archive that holds it: see `find_splits`.
      output: the folder for sets; `default_output()` if not given.
      skip_bad: whether to leave out pairs that cannot be used; otherwise all are named and nothing is built.
      object_labels: the values of masks that are object, as of `open_pairs`; masks are stored as 0 and 255.
      progress: whether to show bars on stderr.

    Returns:
      JSON values: `name`, `path` (of the set, with the splits below by `:<split>`), `built` (false if it existed
      already), `bytes` on disk, and `splits`: by name, `pairs`, `expected` and `left_out` (names).

    Raises:
      InputError: there is no such data set, or the data or output cannot be used.
    """
    known = SETS.get(name.lower().replace("-", "_"))
    if known is None:
        raise InputError(f"{name}: no such data set; known are {', '.join(SETS)}")
    output = Path(default_output() if output is None else output)
    target, work = output / known.key / VERSION, output / f"{known.key}.part"
    sources = find_splits(known, data, object_labels)
    _report_counts(known, sources)
    if target.exists():
        _check_same(target, sources)
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed just before it removed this folder
        return _summary(known, target, built=False)
    check_output_folder(output)
    left_out = dict(zip(sources, bad_pairs(list(sources.values()), skip_bad, progress), strict=True))
    _check_space(output, sources)
    try:
        with only_process(work, "preparing this data set"):
            if target.exists():  # another process has built it meanwhile
                _check_same(target, sources)
                shutil.rmtree(work, ignore_errors=True)
                return _summary(known, target, built=False)
            _build(known, work, target, sources, left_out, progress)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {reason(error)}") from error
    return _summary(known, target, built=True)


def _build(
    known: SalientSet,
    work: Path,
    target: Path,
    sources: Mapping[str, Pairs],
    left_out: Mapping[str, list[int]],
    progress: bool,
) -> None:
    """Builds the set in `work`, moves it to `target`, and removes `work`."""
    temporary_paths.add(str(work))  # before imports, within which a signal ends the process at once
    import tensorflow_datasets as tfds

    import purinet_jax.data.builders  # noqa: F401  registers them with TFDS

    unfinished = work / known.key
    shutil.rmtree(unfinished, ignore_errors=True)
    tfds.disable_progress_bar()  # ours knows the number of pairs
    try:
        # TFDS prints the path where it builds, which is not the set's final path.
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder(known.key, data_dir=work, sources=sources, left_out=left_out, progress=progress)
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        target.parent.mkdir(exist_ok=True)
        (unfinished / VERSION).rename(target)
    finally:
        tfds.enable_progress_bar()
        shutil.rmtree(work, ignore_errors=True)
        temporary_paths.discard(str(work))


def _report_counts(known: SalientSet, sources: Mapping[str, Pairs]) -> None:
    for split, expected in known.counts.items():
        found = len(sources[split]) if split in sources else 0
        if found == 0:
            logger.warning("%s %s: absent (%s pairs)", known.name, split, f"{expected:,}")
        elif found != expected:
            logger.warning("%s %s: %s of %s pairs", known.name, split, f"{found:,}", f"{expected:,}")


def _check_same(target: Path, sources: Mapping[str, Pairs]) -> None:
    found = {split: values["source"] for split, values in prepared_splits(target).items()}
    wanted = {split: pairs.fingerprint for split, pairs in sources.items()}
    if found == wanted:
        return
    if found.keys() != wanted.keys():
        difference = f"the splits {' and '.join(found)} instead of {' and '.join(wanted)}"
    else:
        difference = f"{' and '.join(split for split in found if found[split] != wanted[split])} of other data"
    raise InputError(f"{target}: holds a set already, with {difference}; remove it or choose another output")


def _check_space(output: Path, sources: Mapping[str, Pairs]) -> None:
    needed = sum(sum(map(sum, pairs.sizes)) for pairs in sources.values())
    folder = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{output}: about {needed / 1e6:,.0f} MB are needed, but {free / 1e6:,.0f} MB are free")


def _summary(known: SalientSet, target: Path, built: bool) -> dict[str, Any]:
    return {
        "name": known.name,
        "path": str(target.parent),
        "built": built,
        "bytes": sum(file.stat().st_size for file in target.iterdir()),
        "splits": {
            split: {"pairs": len(values["names"]), "expected": known.counts[split], "left_out": values["left_out"]}
            for split, values in prepared_splits(target).items()
        },
    }
