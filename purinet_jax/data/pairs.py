"""Data sets of images and their masks, read one pair at a time from a folder or straight from a zip. What is
wrong with a data set is said when it is opened, as far as names can tell, and by `check_pairs`, which decodes
every file.
"""

import hashlib
import operator
import os
import re
import threading
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

from purinet_jax.data.images import EXTENSIONS, check_image, read_mask, read_rgb
from purinet_jax.errors import InputError

# Compared without case and separators, from the end: "DUTS-TR-Image", "Imgs", "ground_truth_mask", "GT".
# DUT-OMRON's own name for its masks fits no rule.
_IMAGE_FOLDERS = ("image", "images", "img", "imgs")
_MASK_FOLDERS = ("mask", "masks", "gt", "gts", "groundtruth", "pixelwisegtnewpng")

_MEMBER_LIMIT = 1 << 30  # bytes; no image of permitted size comes near, and a zip can claim anything


class Example(TypedDict):
    """One pair: `image` uint8 [height, width, 3]; `mask` uint8 [height, width], 0 or 1; `superpixels` int32
    [height, width], if the data set was opened with them; `index` in the data set."""

    image: np.ndarray
    mask: np.ndarray
    superpixels: NotRequired[np.ndarray]
    index: int


class SuperpixelSource(Protocol):
    """Where a pair's superpixels come from; `purinet_jax.superpixels` has the two kinds."""

    def get(self, name: str, image: np.ndarray) -> np.ndarray:
        """Labels int32 [height, width], from 0, of the image uint8 [height, width, 3] of this name."""
        ...

    def check(self, name: str, height: int, width: int) -> None:
        """Raises InputError where `get` would, as far as that is known beforehand."""
        ...


class _Storage(Protocol):
    path: Path

    def members(self) -> list[tuple[str, int]]:
        """Paths inside, with forward slashes, and sizes in bytes."""
        ...

    def read(self, member: str) -> bytes: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> list[tuple[str, int]]:
        # Two levels of folders, so that a slip such as opening a home folder does not walk a whole disk.
        found: list[tuple[str, int]] = []
        try:
            for outer in _subfolders(self.path):
                if _kind(outer):
                    found += self._files(outer)
                else:
                    for inner in _subfolders(self.path / outer):
                        if _kind(inner):
                            found += self._files(f"{outer}/{inner}")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return found

    def _files(self, folder: str) -> list[tuple[str, int]]:
        with os.scandir(self.path / folder) as entries:
            return [(f"{folder}/{entry.name}", entry.stat().st_size) for entry in entries if entry.is_file()]

    def read(self, member: str) -> bytes:
        try:
            return (self.path / member).read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}/{member}: cannot be read: {error.strerror or error}") from error


class _Zip:
    """A zip file, opened when first read from, once per process: its handle goes into no worker process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def _archive(self) -> zipfile.ZipFile:
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                try:
                    self._opened = os.getpid(), zipfile.ZipFile(self.path)
                except zipfile.BadZipFile as error:
                    raise InputError(f"{self.path}: not a zip file, or a damaged one: {error}") from error
                except OSError as error:
                    raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
            return self._opened[1]

    def members(self) -> list[tuple[str, int]]:
        found = []
        for member in self._archive().infolist():
            # Nothing is ever unpacked to a path; but a zip with such names was made to harm, and is not
            # trusted.
            raw = member.orig_filename
            if "\\" in raw or raw.startswith("/") or re.match("[A-Za-z]:", raw) or ".." in raw.split("/"):
                raise InputError(f"{self.path}: the member {raw!r} leaves the folder")
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise InputError(f"{self.path}: the member {raw!r} is encrypted")
            found.append((member.filename, member.file_size))
        return found

    def read(self, member: str) -> bytes:
        archive = self._archive()
        try:
            information = archive.getinfo(member)
            if information.file_size > _MEMBER_LIMIT:
                raise InputError(f"{self.path}/{member}: unpacks to {information.file_size:,} bytes")
            return archive.read(information)
        except InputError:
            raise
        except Exception as error:  # a damaged zip raises BadZipFile, zlib.error, EOFError, OSError, KeyError …
            raise InputError(f"{self.path}/{member}: damaged in the zip: {error}") from error


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and masks by index, as `open_pairs` found them. Can be pickled; a worker process opens its own
    zip.

    `names` are the files' names without endings, sorted.
    """

    path: Path
    names: tuple[str, ...]
    storage: _Storage
    images: tuple[str, ...]
    masks: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    superpixels: SuperpixelSource | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        """Reads one pair.

        Args:
          index: 0 to length - 1.

        Returns:
          An `Example`.

        Raises:
          IndexError: there is no such index.
          InputError: a file cannot be used, or image and mask differ in size.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pairs")
        image = read_rgb(self.storage.read(self.images[index]), self.image_path(index))
        mask = read_mask(self.storage.read(self.masks[index]), self.mask_path(index))
        self._check_sizes(index, image.shape[:2], mask.shape)
        example: Example = {"image": image, "mask": mask, "index": index}
        if self.superpixels is not None:
            example["superpixels"] = self.superpixels.get(self.names[index], image)
        return example

    def image_path(self, index: int) -> str:
        """How messages name an image: the data set's path and the file's path inside."""
        return f"{self.path}/{self.images[index]}"

    def mask_path(self, index: int) -> str:
        """How messages name a mask."""
        return f"{self.path}/{self.masks[index]}"

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over names and file sizes: another one means another data set. The same for a
        folder and for a zip of it."""
        digest = hashlib.sha256()
        for name, (image, mask) in zip(self.names, self.sizes, strict=True):
            digest.update(f"{name}\0{image}\0{mask}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def subset(self, indices: Iterable[int]) -> "Pairs":
        """The pairs at these indices, in this order, counted from 0 again.

        Raises:
          IndexError: there is no such index.
        """
        kept = [operator.index(index) for index in indices]
        for index in kept:
            if not 0 <= index < len(self):
                raise IndexError(f"index {index} of {len(self)} pairs")
        return replace(
            self,
            names=tuple(self.names[index] for index in kept),
            images=tuple(self.images[index] for index in kept),
            masks=tuple(self.masks[index] for index in kept),
            sizes=tuple(self.sizes[index] for index in kept),
        )

    def check(self, index: int) -> None:
        """Parses the files of one pair, cheaper than reading them.

        Raises:
          InputError: a file cannot be used, or sizes differ.
        """
        image = check_image(self.storage.read(self.images[index]), self.image_path(index))
        mask = read_mask(self.storage.read(self.masks[index]), self.mask_path(index)).shape
        self._check_sizes(index, image, mask)
        if self.superpixels is not None:
            self.superpixels.check(self.names[index], *image)

    def _check_sizes(self, index: int, image: Sequence[int], mask: Sequence[int]) -> None:
        if tuple(image) != tuple(mask):
            raise InputError(
                f"{self.image_path(index)}: the image has {image[1]}×{image[0]} pixels, "
                f"but its mask {self.masks[index]} has {mask[1]}×{mask[0]}"
            )


def open_pairs(
    path: str | Path,
    *,
    superpixels: str | Path | None = None,
    superpixel_fallback: str | Path | None = None,
) -> Pairs:
    """Opens a data set: a folder of images beside a folder of masks, paired by name.

    The two folders are recognised by their names, in any case: `…Image`, `images`, `Imgs`, `im` and `…Mask`,
    `masks`, `GT`, `ground_truth`. They may lie one folder down.

    Args:
      path: a folder, or a zip of it (read in place, not unpacked).
      superpixels: "slic" to compute them, once, into `<path without .zip>.superpixels`; a folder of `.mat` or
        `.png` files with the images' names; None for no superpixels.
      superpixel_fallback: a folder for computed superpixels where the one beside the data set is not
        writable.

    Returns:
      The pairs, sorted by name.

    Raises:
      InputError: there is no such data set, it is empty, images and masks do not match, two files share a
        name, a zip's member leaves the folder or is encrypted, or the superpixels have no place or are
        incomplete.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    storage: _Storage = _Folder(path) if path.is_dir() else _Zip(path)
    by_folder: dict[PurePosixPath, list[tuple[str, int]]] = {}
    for member, size in storage.members():
        file = PurePosixPath(member)
        hidden = any(part.startswith((".", "__MACOSX")) for part in file.parts)
        if file.suffix.lower() in EXTENSIONS and not hidden:
            by_folder.setdefault(file.parent, []).append((member, size))
    image_folder, mask_folder = _find_folders(path, by_folder)
    images = _by_stem(path, by_folder[image_folder])
    masks = _by_stem(path, by_folder[mask_folder])
    if lacking := sorted(images.keys() - masks.keys()):
        raise InputError(f"{path}: no mask in {mask_folder} for {_some(lacking, 'image')}")
    if lacking := sorted(masks.keys() - images.keys()):
        raise InputError(f"{path}: no image in {image_folder} for {_some(lacking, 'mask')}")
    names = tuple(sorted(images))
    source = None if superpixels is None else _superpixel_source(path, names, superpixels, superpixel_fallback)
    return Pairs(
        path=path,
        names=names,
        storage=storage,
        images=tuple(images[name][0] for name in names),
        masks=tuple(masks[name][0] for name in names),
        sizes=tuple((images[name][1], masks[name][1]) for name in names),
        superpixels=source,
    )


def check_pairs(pairs: Pairs, workers: int = 0, progress: bool = True) -> list[tuple[int, str]]:
    """Parses every file of a data set, in threads (decoders let go of Python's lock).

    Args:
      pairs: the data set.
      workers: how many threads; 0 for one per CPU, at most 8.
      progress: whether to show a bar on stderr.

    Returns:
      Index and reason of each pair that cannot be used, in order; the reason names the file.
    """
    from tqdm import tqdm

    def reason(index: int) -> str | None:
        try:
            pairs.check(index)
        except InputError as error:
            return str(error)
        return None

    bad = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(reason, range(len(pairs)))
        bar = tqdm(reasons, total=len(pairs), desc="checking", unit="pair", disable=not progress)
        for index, found in enumerate(bar):
            if found is not None:
                bad.append((index, found))
    return bad


def images_in(*paths: str | Path) -> list[Path]:
    """Collects image files to predict on.

    Args:
      paths: files, taken as they are, and folders, of which the files with an image's ending (in any case)
        are taken.

    Returns:
      The files in the order given, those of a folder sorted; each once.

    Raises:
      InputError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
            )
            if not inside:
                raise InputError(f"{path}: holds no images ({', '.join(EXTENSIONS)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not found:
        raise InputError("no images were named")
    return list(dict.fromkeys(found))


def _superpixel_source(
    path: Path, names: tuple[str, ...], superpixels: str | Path, fallback: str | Path | None
) -> SuperpixelSource:
    # Here, because that module reads and writes its files with this package, and imports it.
    from purinet_jax.superpixels import SuperpixelCache, SuperpixelFolder, cache_folder

    if superpixels == "slic":
        return SuperpixelCache(cache_folder(path, fallback))
    source = SuperpixelFolder(superpixels)
    if lacking := source.missing(names):
        raise InputError(f"{superpixels}: no superpixels for {_some(lacking, 'image')}")
    return source


def _subfolders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _kind(folder: str) -> str | None:
    """What a folder holds, by its name: "image", "mask", or None."""
    plain = re.sub("[-_ .]", "", folder.lower())
    if plain.endswith(_MASK_FOLDERS):
        return "mask"
    if plain == "im" or plain.endswith(_IMAGE_FOLDERS):
        return "image"
    return None


def _find_folders(
    path: Path, folders: dict[PurePosixPath, list[tuple[str, int]]]
) -> tuple[PurePosixPath, PurePosixPath]:
    """The one folder of images and the one folder of masks that lie side by side."""
    beside: dict[PurePosixPath, dict[str, list[PurePosixPath]]] = {}
    for folder in sorted(folders):
        if kind := _kind(folder.name):
            beside.setdefault(folder.parent, {"image": [], "mask": []})[kind].append(folder)
    candidates = [(image, mask) for kinds in beside.values() for image in kinds["image"] for mask in kinds["mask"]]
    if not candidates:
        raise InputError(
            f"{path}: no folder of images beside a folder of masks, such as DUTS-TR-Image and DUTS-TR-Mask"
        )
    if len(candidates) > 1:
        listed = _some([f"{image} with {mask}" for image, mask in candidates], "candidate")
        raise InputError(f"{path}: more than one data set: {listed}")
    return candidates[0]


def _by_stem(path: Path, members: list[tuple[str, int]]) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    for member, size in members:
        stem = PurePosixPath(member).stem
        if stem in found:
            raise InputError(f"{path}: two files named {stem}: {found[stem][0]} and {member}")
        found[stem] = member, size
    return found


def _some(names: list[str], what: str) -> str:
    """The number of names and the first few of them."""
    listed = ", ".join(names[:3])
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}: {listed}{', …' if len(names) > 3 else ''}"
