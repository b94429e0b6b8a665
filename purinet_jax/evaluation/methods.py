"""Data sets' masks, and the methods that are measured on them: networks, and maps from files. Opening them reads only
the names of files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from purinet_jax.data.archives import without_ending
from purinet_jax.data.masks import GREY, Coding, understand
from purinet_jax.data.pairs import Pairs, by_stem, open_pairs
from purinet_jax.data.storage import Storage, open_storage, prepared_folder
from purinet_jax.errors import InputError

# Worker processes import this module without JAX.
if TYPE_CHECKING:
    from purinet_jax.prediction.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Files:
    """Grey images in a storage, `members` by name without extension; `coding` is that of masks. Can be pickled."""

    path: Path
    storage: Storage
    members: Mapping[str, str]
    coding: Coding = GREY

    def label(self, name: str) -> str:
        """A file's name in messages."""
        return f"{self.path}/{self.members[name]}"

    def read(self, name: str) -> bytes:
        """Returns a file's bytes. Raises InputError, which names it."""
        return self.storage.read(self.members[name])

    def read_mask(self, name: str) -> np.ndarray:
        """Returns a mask, uint8 [height, width], 0 to 255 (object). Raises InputError, which names it."""
        return self.coding.read(self.read(name), self.label(name))


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The masks of a data set, opened by `open_masks`, or its pairs of image and mask, opened by `open_data`.

    `name` is its name in tables. `unpaired` are files without a counterpart, which are left out.
    """

    name: str
    masks: Files
    pairs: Pairs | None = None
    unpaired: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Network:
    """A method that predicts its maps, and its name in tables."""

    name: str
    predictor: "Predictor"


@dataclass(frozen=True, eq=False)
class SavedMaps:
    """A method whose maps are files in a folder or archive, opened by `open_maps`."""

    name: str
    path: Path
    storage: Storage
    members: tuple[str, ...]


Method = Network | SavedMaps


def open_data(
    path: str | Path, name: str | None = None, skip_unpaired: bool = False, object_labels: Sequence[int] = ()
) -> GroundTruth:
    """Opens a data set of images and masks.

    Args:
      path: as of `open_pairs`.
      name: its name in tables, by default that of the path.
      skip_unpaired: whether to leave out images without a mask and masks without an image, instead of refusing them.
      object_labels: as of `open_pairs`.

    Raises:
      InputError: as `open_pairs`.
    """
    pairs = open_pairs(path, skip_unpaired=skip_unpaired, object_labels=object_labels)
    masks = Files(pairs.path, pairs.storage, dict(zip(pairs.names, pairs.masks, strict=True)), pairs.coding)
    return GroundTruth(name or _stem(pairs.path), masks, pairs, pairs.unpaired)


def open_masks(path: str | Path, name: str | None = None, object_labels: Sequence[int] = ()) -> GroundTruth:
    """Opens masks without images, against which maps from files can be measured.

    Args:
      path: a folder or archive of masks.
      name: the data set's name in tables, by default that of the path without a suffix for masks ("DUTS-TE" for
        `DUTS-TE-Mask`, and "ECSSD" for `ECSSD/ground_truth_mask`).
      object_labels: as of `open_pairs`.

    Raises:
      InputError: there is no such path, it holds no images, two files share a name, or masks cannot be understood.
    """
    path = Path(path)
    storage = open_storage(path)
    members = by_stem(path, (member for member, _ in storage.images()))
    if not members:
        hint = f"; a prepared set is given with --data, as {path}:SPLIT" if prepared_folder(path) else ""
        raise InputError(f"{path}: holds no masks{hint}")
    masks = Files(path, storage, members, understand(path, list(members.values()), storage.read, object_labels))
    if name is None:
        stem = _stem(path)
        name = re.sub(r"([-_ .]*(masks?|gts?|ground[-_ .]?truths?))+$", "", stem, flags=re.IGNORECASE)
        name = name or path.resolve().parent.name or stem
    return GroundTruth(name, masks)


def open_maps(path: str | Path, name: str | None = None) -> SavedMaps:
    """Opens a method's maps, whose names are those of the masks but for the extension.

    Args:
      path: a folder or archive of maps; for several data sets, with a folder named after each.
      name: the method's name in tables, by default that of the path.

    Raises:
      InputError: there is no such path, or it holds no images.
    """
    path = Path(path)
    storage = open_storage(path)
    members = tuple(member for member, _ in storage.images())
    if not members:
        raise InputError(f"{path}: holds no maps")
    return SavedMaps(name or _stem(path), path, storage, members)


def _stem(path: Path) -> str:
    name = path.name or path.resolve().name or str(path)
    return without_ending(name)
