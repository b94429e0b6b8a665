"""Finds the splits of a published data set in a user's downloads: one folder or archive, or a folder of several.

Such a folder may hold the authors' archives, or what was unpacked from them, and other data sets as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from purinet_jax.data.archives import Tar, Zip
from purinet_jax.data.layouts import Layout, find_layouts
from purinet_jax.data.pairs import Pairs, pairs_of, with_coding
from purinet_jax.data.sets import SalientSet, sets_named, words
from purinet_jax.data.storage import Folder, archives_in, open_storage
from purinet_jax.errors import InputError, summarise

_Candidate = TypeVar("_Candidate")

_SPLIT_WORDS = {"train": ("tr", "train", "training"), "test": ("te", "test", "testing")}


def find_splits(known: SalientSet, path: str | Path, object_labels: Sequence[int] = ()) -> dict[str, Pairs]:
    """Finds a data set's splits.

    Of several data sets, those are taken whose folder or archive is named after this one, or else those that are not
    named after another one of the seven. Splits are told by names such as DUTS-TR, or else by the number of pairs.

    Args:
      known: the data set to look for.
      path: a folder or zip that `open_pairs` opens, or a folder with several such, a few levels down.
      object_labels: as of `open_pairs`.

    Returns:
      The pairs of each split that was found, in the order of `known.counts`; at least one.

    Raises:
      InputError: nothing was found, or more than one candidate for a split, or one that belongs to none; as
        `open_pairs`.
    """
    path = Path(path)
    storage = _storage(known, path)
    layouts = find_layouts(storage)
    if not layouts:
        raise InputError(f"{path}: holds no images with masks; {known.name} comes as {known.archives}")
    ours = _ours(known, layouts, [_parts(layout) for layout in layouts])
    if not ours:
        listed = summarise([str(layout) for layout in layouts], "candidate")
        raise InputError(f"{path}: holds other data sets than {known.name}: {listed}")
    by_split: dict[str, list[tuple[Layout, Pairs]]] = {split: [] for split in known.counts}
    for layout in ours:
        split = _split_by_name(known, path, layout)
        pairs = None
        if split is None:
            pairs = pairs_of(path, storage, layout)
            split = _split_by_count(known, path, layout, len(pairs))
        # A layout recognised by weaker evidence does not compete.
        if not by_split[split] or layout.evidence == by_split[split][0][0].evidence:
            by_split[split].append((layout, pairs or pairs_of(path, storage, layout)))
    splits = {split: _only(known, path, split, found) for split, found in by_split.items() if found}
    return {split: with_coding(pairs, object_labels) for split, pairs in splits.items()}


def _storage(known: SalientSet, path: Path) -> Folder | Zip | Tar:
    if not path.is_dir():
        return open_storage(path)
    archives = archives_in(path)
    # Another data set's archive may be damaged or still downloading.
    return Folder(path, tuple(_ours(known, archives, [Path(name).parts for name in archives])))


def _parts(layout: Layout) -> tuple[str, ...]:
    """Returns the names of folders and archives that lead to images and masks."""
    return layout.image_folder.parts + layout.mask_folder.parts


def _ours(known: SalientSet, candidates: list[_Candidate], parts: list[tuple[str, ...]]) -> list[_Candidate]:
    """Returns those that are named after this data set, or else those that are named after none."""
    named = [(candidate, sets_named(each)) for candidate, each in zip(candidates, parts, strict=True)]
    ours = [candidate for candidate, keys in named if known.key in keys]
    return ours or [candidate for candidate, keys in named if not keys]


def _split_by_name(known: SalientSet, path: Path, layout: Layout) -> str | None:
    if len(known.counts) == 1:
        return next(iter(known.counts))
    for part in (*reversed(_parts(layout)), path.absolute().name):
        splits = [split for split in known.counts if not set(words(part)).isdisjoint(_SPLIT_WORDS[split])]
        if len(splits) == 1:
            return splits[0]
    return None


def _split_by_count(known: SalientSet, path: Path, layout: Layout, count: int) -> str:
    for split, expected in known.counts.items():
        if count == expected:
            return split
    raise InputError(
        f"{path}: cannot tell to which part of {known.name} the {count:,} pairs in {layout} belong; "
        "name the folder or archive train or test"
    )


def _only(known: SalientSet, path: Path, split: str, found: list[tuple[Layout, Pairs]]) -> Pairs:
    """Returns the one candidate, or the first of several equal ones, such as a zip and what was unpacked from it."""
    if len({pairs.fingerprint for _, pairs in found}) > 1:
        listed = summarise([str(layout) for layout, _ in found], "candidate")
        raise InputError(f"{path}: more than one data set for {known.name} {split}: {listed}")
    return found[0][1]
