"""Finds the folders of images and of masks in a data set, by their names or else by what the files hold.

Every layout in use is recognised: two folders side by side, two folders further apart, and images and masks together
in one folder.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations
from os.path import splitext
from pathlib import PurePosixPath

import numpy as np

from purinet_jax.data.archives import Tar, Zip, without_ending
from purinet_jax.data.images import read_rgb
from purinet_jax.data.results import own_results
from purinet_jax.data.sets import sets_named
from purinet_jax.data.storage import Folder, Storage
from purinet_jax.errors import InputError

logger = logging.getLogger(__name__)

# Compared without case and separators, from the end: "DUTS-TR-Image", "Imgs", "ground_truth_mask", "GT".
# DUT-OMRON's own name for its masks fits no rule.
_IMAGE_FOLDERS = ("image", "images", "img", "imgs")
_MASK_FOLDERS = ("mask", "masks", "gt", "gts", "groundtruth", "groundtruths", "pixelwisegtnewpng")

# If names do not tell: how many files are read, and among how many folders side by side.
_SAMPLES = 5
_SIBLINGS = 10

Member = tuple[str, int]
"""A file's path inside the storage, and its size in bytes."""


class Evidence(IntEnum):
    """What a layout was recognised by, the most reliable first."""

    NAMES_SIDE_BY_SIDE = 0
    NAMES_APART = 1
    ONE_FOLDER = 2
    CONTENTS = 3


@dataclass(frozen=True)
class Layout:
    """The files of images and masks, not matched yet."""

    evidence: Evidence
    image_folder: PurePosixPath
    mask_folder: PurePosixPath
    images: tuple[Member, ...]
    masks: tuple[Member, ...]

    def __str__(self) -> str:
        return f"{self.image_folder} with {self.mask_folder}"


def find_layouts(storage: Folder | Zip | Tar) -> list[Layout]:
    """Returns everything in a folder or archive that looks like a data set, the most reliable first.

    Raises:
      InputError: the storage cannot be read.
    """
    folders = _inputs_by_folder(storage.images())
    found: list[Layout] = []

    def take(layouts: list[Layout]) -> None:
        # The next rules do not see these folders.
        for layout in layouts:
            for folder in (layout.image_folder, layout.mask_folder):
                folders.pop(folder, None)
        found.extend(layouts)

    take(_side_by_side(folders))
    take(_apart(folders))
    take(_in_one_folder(storage, folders))
    taken = {folder.parent for layout in found for folder in (layout.image_folder, layout.mask_folder)}
    take(_by_contents(storage, {folder: folders[folder] for folder in folders if folder.parent not in taken}))
    return found


def _inputs_by_folder(members: list[Member]) -> dict[PurePosixPath, list[Member]]:
    """Groups files by their folders, and leaves out what `purinet predict` wrote next to images."""
    by_name: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        by_name[member[0].rpartition("/")[0]].append(member)
    stems = Counter(_stem(member) for member in members)
    folders = {}
    for folder, files in by_name.items():
        results = own_results(path.rpartition("/")[2] for path, _ in files)
        # A file that has a counterpart is no result: road_map.jpg with road_map.png, next to road.jpg with road.png.
        kept = (
            [file for file in files if file[0].rpartition("/")[2] not in results or stems[_stem(file)] > 1]
            if results
            else files
        )
        if len(kept) < len(files):
            logger.info("%s: %d results of purinet predict are left out", folder or ".", len(files) - len(kept))
        folders[PurePosixPath(folder)] = kept
    return folders


def _stem(member: Member) -> str:
    """Returns a file's name without extension; much faster than `PurePosixPath.stem`."""
    return splitext(member[0].rpartition("/")[2])[0]


def _kind(folder: str) -> str | None:
    """Returns what a folder holds, by its name: "image", "mask", or None."""
    words = re.split("[-_ .]", without_ending(folder.lower()))
    plain = "".join(words)
    if plain.endswith(_MASK_FOLDERS):
        return "mask"
    # "im" is at the end of too many other words.
    if words[-1] == "im" or plain.endswith(_IMAGE_FOLDERS):
        return "image"
    return None


def _side_by_side(folders: dict[PurePosixPath, list[Member]]) -> list[Layout]:
    """`images` next to `masks`, whatever files they hold, so that missing files can be named."""
    return [
        _layout(Evidence.NAMES_SIDE_BY_SIDE, folders, image, mask)
        for siblings in _by_parent(folders)
        for image in siblings
        if _kind(image.name) == "image"
        for mask in siblings
        if _kind(mask.name) == "mask"
    ]


def _by_parent(folders: Iterable[PurePosixPath]) -> list[list[PurePosixPath]]:
    """Groups folders by their parents, in the order of the first of each group."""
    groups: dict[PurePosixPath, list[PurePosixPath]] = defaultdict(list)
    for folder in sorted(folders):
        groups[folder.parent].append(folder)
    return list(groups.values())


def _apart(folders: dict[PurePosixPath, list[Member]]) -> list[Layout]:
    """`imgs/pascal` and `masks/pascal`, `images.zip/images` and `ground_truth_mask.zip/ground_truth_mask`."""
    kinds: dict[str, list[PurePosixPath]] = {"image": [], "mask": []}
    for folder in sorted(folders):
        if kind := next(filter(None, map(_kind, reversed(folder.parts))), None):
            kinds[kind].append(folder)
    stems = {folder: {_stem(member) for member in folders[folder]} for folder in (*kinds["image"], *kinds["mask"])}
    siblings = [{mask.name: mask for mask in masks} for masks in _by_parent(kinds["mask"])]
    found = []
    for image in kinds["image"]:
        sharing: list[PurePosixPath] = []
        for masks in siblings:
            depth = len(next(iter(masks.values())).parts) - 1
            # Of thousands of classes, the folder of the same name is the nearest.
            same = masks.get(image.parts[depth]) if depth < len(image.parts) else None
            if same is not None and _overlap(stems[image], stems[same]):
                sharing.append(same)
            else:
                sharing += [mask for mask in masks.values() if _overlap(stems[image], stems[mask])]
        if sharing:
            least = min(_distance(image, mask) for mask in sharing)
            nearest = sorted(mask for mask in sharing if _distance(image, mask) == least)
            found += [_layout(Evidence.NAMES_APART, folders, image, mask) for mask in nearest]
    return found


def merged(layouts: list[Layout]) -> list[Layout]:
    """Returns one layout for `images/cats` with `masks/cats`, `images/dogs` with `masks/dogs`; else the same layouts.

    Folders that are named after published data sets are no classes of one set.
    """
    if len(layouts) < 2 or any(layout.evidence != Evidence.NAMES_APART for layout in layouts):
        return layouts
    roots = set()
    for layout in layouts:
        parts, others = layout.image_folder.parts, layout.mask_folder.parts
        same = next((i for i, (a, b) in enumerate(zip(parts[::-1], others[::-1], strict=False)) if a != b), 0)
        below = parts[len(parts) - same :]
        if not below or sets_named(below):
            return layouts
        roots.add((parts[: len(parts) - same], others[: len(others) - same]))
    if len(roots) > 1:
        return layouts
    ((images, masks),) = roots
    return [
        Layout(
            Evidence.NAMES_APART,
            PurePosixPath(*images),
            PurePosixPath(*masks),
            tuple(member for layout in layouts for member in layout.images),
            tuple(member for layout in layouts for member in layout.masks),
        )
    ]


def _in_one_folder(storage: Storage, folders: dict[PurePosixPath, list[Member]]) -> list[Layout]:
    """`0001.jpg` next to `0001.png`."""
    found = []
    for folder, members in sorted(folders.items()):
        groups: dict[str, list[Member]] = defaultdict(list)
        for member in members:
            ending = splitext(member[0])[1].lower()
            groups[".jpg" if ending in (".jpeg", ".jpe", ".jfif") else ending].append(member)
        if len(groups) != 2 or not _share_stems(*groups.values()):
            continue
        # Masks are not stored as JPEG, which blurs them; among other formats, the pixels must tell.
        jpegs = groups.pop(".jpg", None)
        if jpegs is not None:
            images, masks = jpegs, next(iter(groups.values()))
        else:
            images, masks = groups.values()
            kinds = _hold_masks(storage, images), _hold_masks(storage, masks)
            if kinds == (True, False):
                images, masks = masks, images
            elif kinds != (False, True):
                continue
        found.append(Layout(Evidence.ONE_FOLDER, folder, folder, tuple(images), tuple(masks)))
    return found


def _by_contents(storage: Storage, folders: dict[PurePosixPath, list[Member]]) -> list[Layout]:
    """Two folders of the same file names side by side, one of which holds black-and-white images."""
    found = []
    for siblings in _by_parent(folders):
        if len(siblings) > _SIBLINGS:  # the classes of a classification data set
            continue
        for first, second in combinations(siblings, 2):
            if not _share_stems(folders[first], folders[second]):
                continue
            kinds = _hold_masks(storage, folders[first]), _hold_masks(storage, folders[second])
            if kinds[0] != kinds[1]:
                image, mask = (first, second) if kinds[1] else (second, first)
                found.append(_layout(Evidence.CONTENTS, folders, image, mask))
    return found


def _layout(
    evidence: Evidence, folders: dict[PurePosixPath, list[Member]], image: PurePosixPath, mask: PurePosixPath
) -> Layout:
    return Layout(evidence, image, mask, tuple(folders[image]), tuple(folders[mask]))


def _share_stems(first: list[Member], second: list[Member]) -> bool:
    """Whether at least half of the files have a counterpart of the same name."""
    return _overlap(set(map(_stem, first)), set(map(_stem, second)))


def _overlap(stems: set[str], others: set[str]) -> bool:
    most = max(len(stems), len(others))
    return 2 * min(len(stems), len(others)) >= most and 2 * len(stems & others) >= most


def _distance(first: PurePosixPath, second: PurePosixPath) -> tuple[int, int]:
    """Returns how many steps lead from folder to folder, and then in how many parts the paths differ."""
    differs = [one != other for one, other in zip(first.parts, second.parts, strict=False)]
    common = differs.index(True) if True in differs else len(differs)
    return len(first.parts) + len(second.parts) - 2 * common, sum(differs)


def _hold_masks(storage: Storage, members: list[Member]) -> bool:
    """Whether files look like masks: grey, and of few values or nearly all black and white."""
    step = max(1, len(members) // _SAMPLES)
    readable = False
    for member, _ in sorted(members)[::step][:_SAMPLES]:
        try:
            pixels = read_rgb(storage.read(member), member)
        except InputError:
            continue  # raised when the pair is read
        readable = True
        grey = pixels[..., 0]
        if (pixels != grey[..., None]).any():
            return False
        # Averages of several people's masks have steps between, and masks stored as JPEG have blurred edges.
        values = np.flatnonzero(np.bincount(grey.ravel()))
        extreme = np.mean((grey <= 0.1 * grey.max()) | (grey >= 0.9 * grey.max()))
        if len(values) > 32 and extreme < 0.9:
            return False
    return readable
