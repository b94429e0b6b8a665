"""Recognises the files that `purinet predict` wrote next to images, by their names: `a_map.png` next to `a.jpg`."""

import os
from collections.abc import Iterable

RESULT_KINDS = ("map", "mask", "cutout", "overlay", "attention")
"""What such names end in, after an underscore."""


def origin_of(stem: str) -> tuple[str, str] | None:
    """Returns the name and kind that a result's name without extension is made of; None for other names.

    "a_map" gives "a" and "map". Of images that differ only in their extensions, these are kept: "a.jpg_map" gives
    "a.jpg" and "map".
    """
    origin, _, kind = stem.rpartition("_")
    return (origin, kind) if origin and kind in RESULT_KINDS else None


def own_results(names: Iterable[str]) -> set[str]:
    """Returns those of a folder's file names that are results of other files in it."""
    names = set(names)
    stems = {name: os.path.splitext(name)[0] for name in names}
    origins = names.union(stems.values())
    return {name for name, stem in stems.items() if (found := origin_of(stem)) is not None and found[0] in origins}
