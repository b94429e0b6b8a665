"""Finds the folders of images and of masks in a data set, by their names or else by what the files hold.

Every layout in use is recognised: two folders side by side, two folders further apart, and images and masks together
in one folder.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import combinations, groupby
from pathlib import PurePosixPath

import numpy as np

from purinet_jax.data.archives import Tar, Zip, without_ending
from purinet_jax.data.images import read_rgb
from purinet_jax.data.storage import Folder, Storage
from purinet_jax.errors import InputError

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
    folders: dict[PurePosixPath, list[Member]] = defaultdict(list)
    for member, size in storage.images():
        folders[PurePosixPath(member).parent].append((member, size))
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
    found = []
    for image in kinds["image"]:
        by_distance = sorted(kinds["mask"], key=partial(_distance, image))
        for _, masks in groupby(by_distance, key=partial(_distance, image)):
            nearest = [mask for mask in masks if _share_stems(folders[image], folders[mask])]
            if nearest:
                found += [_layout(Evidence.NAMES_APART, folders, image, mask) for mask in nearest]
                break
    return found


def _in_one_folder(storage: Storage, folders: dict[PurePosixPath, list[Member]]) -> list[Layout]:
    """`0001.jpg` next to `0001.png`."""
    found = []
    for folder, members in sorted(folders.items()):
        groups: dict[str, list[Member]] = defaultdict(list)
        for member in members:
            groups[PurePosixPath(member[0]).suffix.lower().replace(".jpeg", ".jpg")].append(member)
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
    stems, others = ({PurePosixPath(member).stem for member, _ in members} for members in (first, second))
    return 2 * len(stems & others) >= max(len(stems), len(others))


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
