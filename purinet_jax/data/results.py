"""Recognises the files that `purinet predict` wrote next to images, by their names: `a_map.png` next to `a.jpg`."""

import os
from collections.abc import Container, Iterable

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


def without_results(members: Iterable[str], names: Container[str]) -> tuple[dict[str, str], list[str]]:
    """Separates results of images from other files, by their paths.

    Args:
      members: paths of files.
      names: the images' names without extensions. A file of such a name is none of the results.

    Returns:
      By image, its map, or the mask if there is no map; and the files that are not results. Of images that have a map
      the original is left out, as are results of other kinds.
    """
    maps: dict[str, str] = {}
    masks: dict[str, str] = {}
    others = []
    for member in members:
        stem = os.path.splitext(os.path.basename(member))[0]
        origin, kind = (None, "") if stem in names else origin_of(stem) or (None, "")
        name = next((name for name in (origin, os.path.splitext(origin)[0]) if name in names), None) if origin else None
        if name is None:
            others.append(member)
        elif kind in ("map", "mask"):
            # Of several, none may be chosen in silence: the next ones count as files without a counterpart.
            found = maps if kind == "map" else masks
            if found.setdefault(name, member) != member:
                others.append(member)
    results = masks | maps
    return results, [member for member in others if os.path.splitext(os.path.basename(member))[0] not in results]
