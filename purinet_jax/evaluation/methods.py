"""What is compared: data sets' masks, and methods, which are networks or anyone's maps from files. Opening them reads
only the names of files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from purinet_jax.data.archives import without_ending
from purinet_jax.data.pairs import Pairs, by_stem, open_pairs
from purinet_jax.data.storage import Storage, open_storage
from purinet_jax.errors import InputError

# Worker processes import this module, and need no JAX.
if TYPE_CHECKING:
    from purinet_jax.prediction.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Files:
    """Grey pictures in a storage, `members` by name without ending. Can be pickled."""

    path: Path
    storage: Storage
    members: Mapping[str, str]

    def label(self, name: str) -> str:
        """How messages name a file."""
        return f"{self.path}/{self.members[name]}"

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises InputError, which names it."""
        return self.storage.read(self.members[name])


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The masks of a data set and, if `pairs` are known, its images; `open_data` and `open_masks` make one.

    `name` is that of a table. `unpaired` are files of the set without a counterpart, which are left out.
    """

    name: str
    masks: Files
    pairs: Pairs | None = None
    unpaired: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Network:
    """A method whose maps are predicted, and its name in a table."""

    name: str
    predictor: "Predictor"


@dataclass(frozen=True, eq=False)
class Maps:
    """A method whose maps are files, `path` a folder or archive of them; `open_maps` makes one."""

    name: str
    path: Path
    storage: Storage
    members: tuple[str, ...]


Method = Network | Maps


def open_data(path: str | Path, name: str | None = None, skip_unpaired: bool = False) -> GroundTruth:
    """Opens a data set of images and masks.

    Args:
      path: as of `open_pairs`.
      name: in tables; that of the path if not given.
      skip_unpaired: whether to leave out images without a mask and masks without an image, rather than to refuse.

    Raises:
      InputError: as `open_pairs`.
    """
    pairs = open_pairs(path, skip_unpaired=skip_unpaired)
    masks = Files(pairs.path, pairs.storage, dict(zip(pairs.names, pairs.masks, strict=True)))
    return GroundTruth(name or _stem(pairs.path), masks, pairs, pairs.unpaired)


def open_masks(path: str | Path, name: str | None = None) -> GroundTruth:
    """Opens masks without their images, against which maps from files can be measured.

    Args:
      path: a folder or archive of masks.
      name: in tables; if not given, that of the path without what calls it masks ("DUTS-TE" for `DUTS-TE-Mask`, and
        "ECSSD" for `ECSSD/ground_truth_mask`).

    Raises:
      InputError: there is no such path, it holds no images, or two files share a name.
    """
    path = Path(path)
    storage = open_storage(path)
    masks = Files(path, storage, by_stem(path, (member for member, _ in storage.images())))
    if not masks.members:
        raise InputError(f"{path}: holds no masks")
    if name is None:
        stem = _stem(path)
        name = re.sub(r"([-_ .]*(masks?|gts?|ground[-_ .]?truths?))+$", "", stem, flags=re.IGNORECASE)
        name = name or path.resolve().parent.name or stem
    return GroundTruth(name, masks)


def open_maps(path: str | Path, name: str | None = None) -> Maps:
    """Opens a method's maps, named as the masks but for the ending.

    Args:
      path: a folder or archive of maps. For several data sets, those of each lie in a folder of the set's name.
      name: in tables; that of the path if not given.

    Raises:
      InputError: there is no such path, or it holds no images.
    """
    path = Path(path)
    storage = open_storage(path)
    members = tuple(member for member, _ in storage.images())
    if not members:
        raise InputError(f"{path}: holds no maps")
    return Maps(name or _stem(path), path, storage, members)


def _stem(path: Path) -> str:
    name = path.name or path.resolve().name or str(path)
    return without_ending(name)
