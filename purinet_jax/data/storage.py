"""Sources of a data set's files: a folder, an archive, a folder with archives in it, or a prepared set.

Each returns the bytes of a file by its path inside, can be pickled, and opens its files once per process.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from purinet_jax.data.archives import ENDINGS, OncePerProcess, Tar, Zip, is_ignored, is_image_path, open_archive
from purinet_jax.errors import InputError
from purinet_jax.files import is_folder, is_special, read_bytes, reason

# A mistyped path, such as a home folder, must not walk an entire disk.
_DEPTH = 4
_FOLDER_LIMIT = 5_000


class Storage(Protocol):
    """Files by their paths inside."""

    path: Path

    def read(self, member: str) -> bytes:
        """Returns the bytes of a file. Raises an InputError that names it."""
        ...


class Folder:
    """A folder, a few levels deep; archives in it can be read as if they were folders."""

    def __init__(self, path: Path, archives: tuple[str, ...] = ()) -> None:
        """Opens the archives at these paths inside; others are ignored. Raises InputError for one that is not read."""
        self.path = path
        self._archives = {name: open_archive(path / name) for name in archives}

    def images(self) -> list[tuple[str, int]]:
        """Lists the image files: paths inside with forward slashes, and sizes in bytes.

        Raises:
          InputError: the folder cannot be read or holds very many folders; as `Zip.images` and `Tar.images`.
        """
        found = list(_files(self.path, is_image_path))
        for name, archive in self._archives.items():
            found += [(f"{name}/{member}", size) for member, size in archive.images()]
        return found

    def read(self, member: str) -> bytes:
        """Returns the bytes of a file. Raises an InputError that names it."""
        for name, archive in self._archives.items():
            if member.startswith(f"{name}/"):
                return archive.read(member.removeprefix(f"{name}/"))
        return read_bytes(self.path / member)


def open_storage(path: Path) -> Folder | Zip | Tar:
    """Opens a folder or archive. Raises InputError if there is neither, or for an archive that is not read."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if is_special(path):
        raise InputError(f"{path}: is a device or pipe, not a folder or archive")
    return Folder(path) if path.is_dir() else open_archive(path)


def archives_in(folder: Path) -> list[str]:
    """Lists the paths of archives in a folder, a few levels deep, sorted. Raises InputError as `Folder.images`."""
    return sorted(path for path, _ in _files(folder, lambda name: name.lower().endswith(ENDINGS)))


def _files(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
    """Yields the paths inside and sizes in bytes of files with names that are wanted. Raises InputError."""
    for prefix, entry in _walk(folder):
        if wanted(entry.name):
            try:
                if entry.is_file():
                    yield f"{prefix}{entry.name}", entry.stat().st_size
            except OSError as error:  # a link in a circle, or into a closed folder
                raise InputError(f"{entry.path}: cannot be read: {reason(error)}") from error


def _walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yields all entries of a folder and its subfolders, each with the path, ending in a slash, that leads to it."""
    waiting = [("", 0)]
    try:
        for count, (prefix, depth) in enumerate(waiting):
            if count == _FOLDER_LIMIT:
                raise InputError(f"{folder}: holds more than {_FOLDER_LIMIT:,} folders; name the data set's own")
            with os.scandir(folder / prefix) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if is_ignored(entry.name):
                        continue
                    yield prefix, entry
                    if depth < _DEPTH and is_folder(entry):
                        waiting.append((f"{prefix}{entry.name}/", depth + 1))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {reason(error)}") from error


class Prepared:
    """One split of a version of a set that `purinet prepare` wrote; its files are `image/<name>` and `mask/<name>`."""

    def __init__(self, path: Path, folder: Path, split: str) -> None:
        self.path = path  # how errors name it
        self._folder = folder
        self._split = split
        self._records = OncePerProcess(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return Prepared, (self.path, self._folder, self._split)

    def _open(self) -> tuple[Any, dict[str, int]]:
        import tensorflow_datasets as tfds

        names = prepared_splits(self._folder)[self._split]["names"]
        try:
            builder = tfds.builder_from_directory(self._folder)
            # Release 0.2 stored superpixels as well.
            encoded = {"image", "mask", "superpixels"} & set(builder.info.features)
            decoders = {feature: tfds.decode.SkipDecoding() for feature in encoded}
            source = builder.as_data_source(self._split, decoders=decoders)
            if len(source) != len(names):
                raise ValueError(f"{len(source)} records for {len(names)} names")
        except Exception as error:  # TFDS and ArrayRecord raise nearly every type on damaged files
            raise InputError(f"{self.path}: damaged: {' '.join(str(error).split())}") from error
        return source, {name: index for index, name in enumerate(names)}

    def read(self, member: str) -> bytes:
        """Returns the bytes of a file. Raises an InputError that names it."""
        feature, _, name = member.partition("/")
        source, indices = self._records.get()
        try:
            data = source[indices[name]][feature]
            if not isinstance(data, bytes):  # a truncated file yields an empty record
                raise ValueError("the record is empty")
            return data
        except Exception as error:  # as above
            raise InputError(f"{self.path}/{member}: damaged: {' '.join(str(error).split())}") from error


def prepared_folder(path: Path) -> Path | None:
    """Returns the folder of a prepared set's latest version, or `path` if it is one itself, or None."""

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


def prepared_splits(folder: Path) -> dict[str, Any]:
    """Returns what `purinet prepare` noted about each split of the set in a `prepared_folder`.

    For each split: `names` and `sizes` (of the files of image and mask that it was made of, bytes), `left_out` (names)
    and `source` (the fingerprint of the data that it was made of, including those left out).

    Raises:
      InputError: it is another data set, or damaged.
    """
    try:
        splits: dict[str, Any] = json.loads((folder / "metadata.json").read_bytes())["splits"]
        if not all({"names", "sizes", "left_out", "source"} <= split.keys() for split in splits.values()):
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: not a data set that `purinet prepare` wrote, or a damaged one") from error
    return splits
