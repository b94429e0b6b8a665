"""Builds a published data set for TFDS, superpixels included, from what a user has of it. A set appears whole or not
at all; what was computed for single images outlives a kill, and the next run goes on from there.
"""

import contextlib
import io
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from purinet_jax.data.images import check_image
from purinet_jax.data.pairs import Pairs, bad_pairs, superpixel_kind, superpixel_source
from purinet_jax.data.sets import SETS, VERSION, SalientSet
from purinet_jax.data.sources import find_splits
from purinet_jax.data.storage import prepared_metadata
from purinet_jax.devices import usable_cores
from purinet_jax.errors import InputError
from purinet_jax.locks import only_process

logger = logging.getLogger(__name__)

# Of superpixels as a 16-bit PNG; measured on DUTS-TR: 0.10.
_BYTES_PER_PIXEL = 0.12


def default_output() -> Path:
    """Where sets are kept unless said otherwise: `$XDG_DATA_HOME/purinet_jax`, or `~/.local/share/purinet_jax`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "purinet_jax"


def prepare(
    name: str,
    data: str | Path,
    output: str | Path | None = None,
    *,
    superpixels: str | Path | None = "slic",
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Builds one of the seven data sets.

    Args:
      name: such as "duts" or "DUT-OMRON".
      data: what there is of it: see `find_splits`.
      output: the folder for sets; `default_output()` if not given.
      superpixels: "slic" to compute them; a folder of `.mat` or `.png` files with the images' names; None for a set
        without.
      skip_bad: leave pairs out that cannot be used; otherwise they are all named and nothing is built.
      workers: processes that compute; 0 for none but this one, None for one per CPU.
      progress: whether to show bars on stderr.

    Returns:
      `name`, `path` (of the set, with the splits below by `:<split>`), `built` (false if it was there already),
      `superpixels` ("slic", "given" or "none"), `bytes` on disk, and `splits`: by name, `pairs`, `expected` and
      `left_out` (names). All of it fits in JSON.

    Raises:
      InputError: there is no such data set, or the data, superpixels or output cannot be used.
    """
    known = _known(name)
    output = Path(default_output() if output is None else output)
    target, work = output / known.key / VERSION, output / f"{known.key}.part"
    kind = superpixel_kind(superpixels)
    sources = find_splits(known, data)
    _report_counts(known, sources)
    if target.exists():
        _check_same(target, sources, kind)
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed when all but this was done
        return _summary(known, target, built=False)
    if kind == "given":
        assert superpixels is not None
        sources = {
            split: replace(pairs, superpixels=superpixel_source(pairs, superpixels)) for split, pairs in sources.items()
        }
    left_out = dict(zip(sources, bad_pairs(list(sources.values()), skip_bad, progress), strict=True))
    _check_space(output, sources, kind)
    if workers is None:
        workers = usable_cores()
    try:
        with only_process(work, "preparing this data set"):
            # The one that went before us may have had this very folder.
            if not target.exists():
                _build(known, work, target, superpixels, sources, left_out, workers, progress)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror or error}") from error
    return _summary(known, target, built=True)


def _build(
    known: SalientSet,
    work: Path,
    target: Path,
    superpixels: str | Path | None,
    sources: Mapping[str, Pairs],
    left_out: Mapping[str, list[int]],
    workers: int,
    progress: bool,
) -> None:
    """Builds the set in `work`, moves it to `target`, and removes `work`."""
    import tensorflow_datasets as tfds

    import purinet_jax.data.builders  # noqa: F401  makes them known to TFDS

    unfinished, computed = work / known.key, work / f"{known.key}.superpixels"
    shutil.rmtree(unfinished, ignore_errors=True)
    tfds.disable_progress_bar()  # ours knows the number of pairs
    try:
        # TFDS prints where it builds, which is not where the set will be.
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder(
                known.key,
                data_dir=work,
                superpixels=superpixels,
                sources=sources,
                left_out=left_out,
                workers=workers,
                progress=progress,
            )
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        target.parent.mkdir(exist_ok=True)
        (unfinished / VERSION).rename(target)
        shutil.rmtree(work)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not any(computed.glob("*/*.png")):
            shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        tfds.enable_progress_bar()


def _known(name: str) -> SalientSet:
    key = name.lower().replace("-", "_")
    if key not in SETS:
        raise InputError(f"{name}: no such data set; known are {', '.join(SETS)}")
    return SETS[key]


def _report_counts(known: SalientSet, sources: Mapping[str, Pairs]) -> None:
    for split, expected in known.counts.items():
        found = len(sources[split]) if split in sources else 0
        if found == 0:
            logger.warning("%s %s: absent (%s pairs)", known.name, split, f"{expected:,}")
        elif found != expected:
            logger.warning("%s %s: %s of %s pairs", known.name, split, f"{found:,}", f"{expected:,}")


def _check_same(target: Path, sources: Mapping[str, Pairs], superpixels: str) -> None:
    held = prepared_metadata(target)
    there = {split: values["source"] for split, values in held["splits"].items()}
    wanted = {split: pairs.fingerprint for split, pairs in sources.items()}
    if held["superpixels"] != superpixels:
        difference = f"superpixels {held['superpixels']} instead of {superpixels}"
    elif there.keys() != wanted.keys():
        difference = f"the splits {' and '.join(there)} instead of {' and '.join(wanted)}"
    elif there != wanted:
        difference = f"{' and '.join(split for split in there if there[split] != wanted[split])} of other data"
    else:
        return
    raise InputError(f"{target}: holds a set already, with {difference}; remove it or choose another output")


def _check_space(output: Path, sources: Mapping[str, Pairs], superpixels: str) -> None:
    needed = 0.0
    for pairs in sources.values():
        needed += sum(map(sum, pairs.sizes))
        # Computed ones are kept beside the set until it is whole.
        copies = {"none": 0, "given": 1, "slic": 2}[superpixels]
        needed += copies * _BYTES_PER_PIXEL * _mean_pixels(pairs) * len(pairs)
    place = next(place for place in (output.absolute(), *output.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(f"{output}: about {needed / 1e6:,.0f} MB are needed, but {free / 1e6:,.0f} MB are free")


def _mean_pixels(pairs: Pairs) -> float:
    """Pixels of an image, of a few taken for all."""
    counts = []
    for index in np.unique(np.linspace(0, len(pairs) - 1, 20).astype(int)):
        with contextlib.suppress(InputError):
            height, width = check_image(pairs.storage.read(pairs.images[index]))
            counts.append(height * width)
    return float(np.mean(counts)) if counts else 0.0


def _summary(known: SalientSet, target: Path, built: bool) -> dict[str, Any]:
    held = prepared_metadata(target)
    return {
        "name": known.name,
        "path": str(target.parent),
        "built": built,
        "superpixels": held["superpixels"],
        "bytes": sum(file.stat().st_size for file in target.iterdir()),
        "splits": {
            split: {
                "pairs": len(values["names"]),
                "expected": known.counts[split],
                "left_out": values["left_out"],
            }
            for split, values in held["splits"].items()
        },
    }
