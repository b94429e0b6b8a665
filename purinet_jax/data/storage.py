"""Where a data set's files lie: a folder, a zip, a folder with zips in it, or a set that `purinet prepare` wrote.
Each gives the bytes of a file by its path inside, can be pickled, and opens its files once per process.
"""

import json
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from purinet_jax.data.images import EXTENSIONS, read_values
from purinet_jax.errors import InputError

# A slip such as opening a home folder must not walk a whole disk.
_DEPTH = 4
_FOLDER_LIMIT = 5_000

_MEMBER_LIMIT = 1 << 30  # bytes; no image of permitted size comes near, and a zip can claim anything

_Opened = TypeVar("_Opened")


class Storage(Protocol):
    """Files by their paths inside."""

    path: Path

    def read(self, member: str) -> bytes:
        """The bytes of a file. Raises InputError, which names it."""
        ...


class _OncePerProcess(Generic[_Opened]):
    """Opens something when it is first asked for, once per process: handles go into no worker process."""

    def __init__(self, opening: Callable[[], _Opened]) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._opened: tuple[int, _Opened] | None = None

    def get(self) -> _Opened:
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), self._opening()
            return self._opened[1]


class Zip:
    """A zip file, read in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = _OncePerProcess(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return Zip, (self.path,)

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise InputError(f"{self.path}: not a zip file, or a damaged one: {error}") from error
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def images(self) -> list[tuple[str, int]]:
        """Paths inside of the image files, with forward slashes, and their sizes in bytes.

        Raises:
          InputError: this is no zip, or a member leaves the folder or is encrypted.
        """
        found = []
        for member in self._archive.get().infolist():
            # Nothing is ever unpacked to a path; but a zip with such names was made to harm, and is not trusted.
            raw = member.orig_filename
            if "\\" in raw or raw.startswith("/") or re.match("[A-Za-z]:", raw) or ".." in raw.split("/"):
                raise InputError(f"{self.path}: the member {raw!r} leaves the folder")
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise InputError(f"{self.path}: the member {raw!r} is encrypted")
            if _is_image(member.filename) and not any(map(_is_ignored, member.filename.split("/"))):
                found.append((member.filename, member.file_size))
        return found

    def read(self, member: str) -> bytes:
        """The bytes of a file. Raises InputError, which names it."""
        archive = self._archive.get()
        try:
            information = archive.getinfo(member)
            if information.file_size > _MEMBER_LIMIT:
                raise InputError(f"{self.path}/{member}: unpacks to {information.file_size:,} bytes")
            return archive.read(information)
        except InputError:
            raise
        except Exception as error:  # a damaged zip raises BadZipFile, zlib.error, EOFError, OSError, KeyError …
            raise InputError(f"{self.path}/{member}: damaged in the zip: {error}") from error


class Folder:
    """A folder, a few levels deep; zips in it can be read as if they were folders."""

    def __init__(self, path: Path, zips: tuple[str, ...] = ()) -> None:
        """Names the folder.

        Args:
          path: the folder.
          zips: paths inside of the zips to read, as `zips` gives them; others are passed over.
        """
        self.path = path
        self._zips = {name: Zip(path / name) for name in zips}

    def images(self) -> list[tuple[str, int]]:
        """Paths inside of the image files, with forward slashes, and their sizes in bytes.

        Raises:
          InputError: the folder cannot be read or holds very many folders; as `Zip.images`.
        """
        found = [
            (f"{prefix}{entry.name}", entry.stat().st_size)
            for prefix, entry in _walk(self.path)
            if _is_image(entry.name) and entry.is_file()
        ]
        for name, archive in self._zips.items():
            found += [(f"{name}/{member}", size) for member, size in archive.images()]
        return found

    def read(self, member: str) -> bytes:
        """The bytes of a file. Raises InputError, which names it."""
        for name, archive in self._zips.items():
            if member.startswith(f"{name}/"):
                return archive.read(member.removeprefix(f"{name}/"))
        try:
            return (self.path / member).read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}/{member}: cannot be read: {error.strerror or error}") from error


def open_storage(path: Path) -> Folder | Zip:
    """A folder or zip. Raises InputError where there is neither."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return Folder(path) if path.is_dir() else Zip(path)


def zips_in(folder: Path) -> list[str]:
    """Paths of the zips in a folder, a few levels deep, sorted. Raises InputError as `Folder.images`."""
    return sorted(
        f"{prefix}{entry.name}"
        for prefix, entry in _walk(folder)
        if entry.name.lower().endswith(".zip") and entry.is_file()
    )


def _walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All entries of a folder and the folders in it, each with the path, ending in a slash, that leads to it."""
    waiting = [("", 0)]
    try:
        for count, (prefix, depth) in enumerate(waiting):
            if count == _FOLDER_LIMIT:
                raise InputError(f"{folder}: holds more than {_FOLDER_LIMIT:,} folders; name the data set's own")
            with os.scandir(folder / prefix) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if _is_ignored(entry.name):
                        continue
                    yield prefix, entry
                    if depth < _DEPTH and entry.is_dir():
                        waiting.append((f"{prefix}{entry.name}/", depth + 1))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _is_ignored(name: str) -> bool:
    """Hidden files, what a Mac adds to zips, and superpixels that were computed beside a data set."""
    return name.startswith((".", "__MACOSX")) or name.endswith(".superpixels")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


class Prepared:
    """One split of a set that `purinet prepare` wrote: TFDS metadata and ArrayRecord files.

    Its files are called `image/<name>`, `mask/<name>` and, where the set has them, `superpixels/<name>`.
    """

    def __init__(self, path: Path, folder: Path, split: str) -> None:
        """Names the place.

        Args:
          path: what errors call it.
          folder: the version's folder, with `dataset_info.json`.
          split: one that `prepared_metadata` lists.
        """
        self.path = path
        self._folder = folder
        self._split = split
        self._records = _OncePerProcess(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return Prepared, (self.path, self._folder, self._split)

    def _open(self) -> tuple[Any, dict[str, int]]:
        import tensorflow_datasets as tfds

        names = prepared_metadata(self._folder)["splits"][self._split]["names"]
        encoded = {feature: tfds.decode.SkipDecoding() for feature in ("image", "mask", "superpixels")}
        try:
            builder = tfds.builder_from_directory(self._folder)
            decoders = {feature: encoded[feature] for feature in encoded if feature in builder.info.features}
            source = builder.as_data_source(self._split, decoders=decoders)
            if len(source) != len(names):
                raise ValueError(f"{len(source)} records for {len(names)} names")
        except Exception as error:  # TFDS and ArrayRecord raise nearly every type on damaged files
            raise InputError(f"{self.path}: damaged: {' '.join(str(error).split())}") from error
        return source, {name: index for index, name in enumerate(names)}

    def read(self, member: str) -> bytes:
        """The bytes of a file. Raises InputError, which names it."""
        feature, _, name = member.partition("/")
        source, indices = self._records.get()
        try:
            data = source[indices[name]][feature]
            if not isinstance(data, bytes):  # of a file that is cut short, an empty record is read
                raise ValueError("the record is empty")
            return data
        except Exception as error:  # as above
            raise InputError(f"{self.path}/{member}: damaged: {' '.join(str(error).split())}") from error


class PreparedSuperpixels:
    """The superpixels that a prepared set holds; a `SuperpixelSource`."""

    def __init__(self, storage: Prepared) -> None:
        self._storage = storage

    def get(self, name: str, image: np.ndarray) -> np.ndarray:
        """Labels int32 [height, width] of the image uint8 [height, width, 3] of this name."""
        member = f"superpixels/{name}"
        labels, _ = read_values(self._storage.read(member), f"{self._storage.path}/{member}")
        return labels

    def check(self, name: str, height: int, width: int) -> None:
        """Raises InputError if they cannot be read."""
        self.get(name, np.empty((height, width, 3), np.uint8))


def prepared_folder(path: Path) -> Path | None:
    """Finds a prepared set.

    Args:
      path: `<output>/<name>`, of which the latest version is taken, or a version's own folder.

    Returns:
      The version's folder, or None if there is no prepared set.
    """

    def version(folder: Path) -> list[int] | None:
        known = re.fullmatch(r"\d+\.\d+\.\d+", folder.name) and (folder / "dataset_info.json").is_file()
        return [int(part) for part in folder.name.split(".")] if known else None

    if version(path):
        return path
    try:
        inside = [folder for folder in path.iterdir() if version(folder)]
    except OSError:
        return None
    return max(inside, key=lambda folder: version(folder) or [], default=None)


def prepared_metadata(folder: Path) -> dict[str, Any]:
    """What `purinet prepare` noted about a set.

    Args:
      folder: as `prepared_folder` finds it.

    Returns:
      `superpixels`: "slic", "given" or "none"; `splits`: by name, each with `names` and `sizes` (of the files of
      image and mask that it was made of, bytes), `left_out` (names) and `source` (the fingerprint of the data
      that it was made of, those left out included).

    Raises:
      InputError: it is another data set, or damaged.
    """
    try:
        metadata = json.loads((folder / "metadata.json").read_bytes())
        known = {"superpixels", "splits"} <= metadata.keys() and all(
            {"names", "sizes", "left_out", "source"} <= split.keys() for split in metadata["splits"].values()
        )
        if not known:
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: not a data set that `purinet prepare` wrote, or a damaged one") from error
    return metadata
