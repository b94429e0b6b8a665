"""Archives that data sets come in, zip and tar, read without being unpacked to a folder: the bytes of a file by its
path inside. They are strangers' files and are not trusted: what leaves the folder, links elsewhere, is encrypted or
claims to unpack to more than is sensible is refused with a line that names it.
"""

import gzip
import io
import logging
import os
import re
import tarfile
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from purinet_jax.data.images import EXTENSIONS
from purinet_jax.errors import InputError

logger = logging.getLogger(__name__)

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
"""Endings, in lower case, by which an archive is recognised in a folder."""

_MEMBER_LIMIT = 1 << 30  # bytes; no image of permitted size comes near, and an archive can claim anything
# What a compressed tar may unpack to: images hardly shrink.
_INFLATION = 100
# More than a header that tarfile reads in one go can need; names that claim to be longer are there to fill memory.
_HEADER_LIMIT = 1 << 20

# By their first bytes, those that no library of Python's reads without another program.
_UNREADABLE = {
    b"Rar!\x1a\x07": "rar",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
}

_Opened = TypeVar("_Opened")


class OncePerProcess(Generic[_Opened]):
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
        self._archive = OncePerProcess(self._open)

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
            raw = member.orig_filename
            _check_place(self.path, raw)
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise InputError(f"{self.path}: the member {raw!r} is encrypted")
            if is_wanted(member.filename):
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


@dataclass(frozen=True)
class _Contents:
    """Where a tar's images lie: `file` is the tar without compression, `members` are offset and size by path inside."""

    file: Path
    members: dict[str, tuple[int, int]]


class Tar:
    """A tar file, read in place; one that is compressed by gzip is decompressed once, into a temporary file."""

    def __init__(self, path: Path, contents: _Contents | None = None) -> None:
        """Names the tar.

        Args:
          path: the file.
          contents: what another process has found in it.
        """
        self.path = path
        self._known = contents
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that works for this one ends before it, and reads the same temporary file.
        return Tar, (self.path, self._known)

    def _contents(self) -> _Contents:
        with self._lock:
            if self._known is None:
                try:
                    plain = self._decompressed() if _starts_with(self.path, b"\x1f\x8b") else self.path
                    self._known = _Contents(plain, self._find(plain))
                except InputError:
                    raise
                except Exception as error:  # a damaged tar raises TarError, zlib.error, EOFError, OSError …
                    reason = getattr(error, "strerror", None) or error
                    raise InputError(f"{self.path}: not a tar file, or a damaged one: {reason}") from error
            return self._known

    def _decompressed(self) -> Path:
        """The tar without compression, a temporary file that goes with this object."""
        limit = _MEMBER_LIMIT + _INFLATION * self.path.stat().st_size
        descriptor, name = tempfile.mkstemp(prefix="purinet-", suffix=".tar")
        weakref.finalize(self, Path(name).unlink, missing_ok=True)
        logger.info("%s: decompressed into a temporary file of its own", self.path)
        with gzip.open(self.path) as source, open(descriptor, "wb") as target:
            while chunk := source.read(1 << 20):
                if target.tell() + len(chunk) > limit:
                    raise InputError(f"{self.path}: unpacks to more than {limit:,} bytes")
                target.write(chunk)
        return Path(name)

    def _find(self, plain: Path) -> dict[str, tuple[int, int]]:
        found = {}
        with _Headers(self.path, plain) as headers, tarfile.open(fileobj=headers, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them, a kilobyte each
                _check_place(self.path, member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    what = "a link" if member.islnk() or member.issym() else "not a plain file"
                    raise InputError(f"{self.path}: the member {member.name!r} is {what}")
                name = str(PurePosixPath(member.name))  # without the "./" of `tar c .`
                if is_wanted(name):
                    found[name] = member.offset_data, member.size
        return found

    def images(self) -> list[tuple[str, int]]:
        """Paths inside of the image files, with forward slashes, and their sizes in bytes.

        Raises:
          InputError: this is no tar, or a member leaves the folder, is a link or no file.
        """
        return [(name, size) for name, (_, size) in self._contents().members.items()]

    def read(self, member: str) -> bytes:
        """The bytes of a file. Raises InputError, which names it."""
        contents = self._contents()
        if member not in contents.members:
            raise InputError(f"{self.path}/{member}: not in the tar")
        offset, size = contents.members[member]
        if size > _MEMBER_LIMIT:
            raise InputError(f"{self.path}/{member}: unpacks to {size:,} bytes")
        try:
            with open(contents.file, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise InputError(f"{self.path}/{member}: cannot be read: {error.strerror or error}") from error
        if len(data) != size:
            raise InputError(f"{self.path}/{member}: damaged in the tar: it ends early")
        return data


class _Headers(io.BufferedReader):
    """A file as tarfile needs it to find members: contents are passed over, and no header is longer than it may be."""

    def __init__(self, path: Path, plain: Path) -> None:
        super().__init__(io.FileIO(plain))
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _HEADER_LIMIT:
            raise InputError(f"{self._path}: has a header of more than {_HEADER_LIMIT:,} bytes")
        return super().read(size)


def open_archive(path: Path) -> Zip | Tar:
    """A zip or tar, told by its first bytes. Raises InputError for those that must be unpacked first."""
    for signature, kind in _UNREADABLE.items():
        if _starts_with(path, signature):
            raise InputError(f"{path}: a {kind} archive, which is not read; unpack it (unar {path.name}) first")
    return Tar(path) if _starts_with(path, b"\x1f\x8b") or _starts_with(path, b"ustar", 257) else Zip(path)


def without_ending(name: str) -> str:
    """An archive's name without what says so: "DUTS-TE" of `DUTS-TE.zip` and of `DUTS-TE.tar.gz`."""
    return re.sub(r"(\.(zip|tar|tar\.gz|tgz))+$", "", name, flags=re.IGNORECASE)


def is_wanted(member: str) -> bool:
    """Whether a path inside an archive is that of an image which is to be seen."""
    return member.lower().endswith(EXTENSIONS) and not any(map(is_ignored, member.split("/")))


def is_ignored(name: str) -> bool:
    """Hidden files, what a Mac adds to zips, and superpixels that were computed beside a data set."""
    return name.startswith((".", "__MACOSX")) or name.endswith(".superpixels")


def _check_place(path: Path, member: str) -> None:
    # Nothing is ever unpacked to a path; but an archive with such names was made to harm, and is not trusted.
    if "\\" in member or member.startswith("/") or re.match("[A-Za-z]:", member) or ".." in member.split("/"):
        raise InputError(f"{path}: the member {member!r} leaves the folder")


def _starts_with(path: Path, signature: bytes, offset: int = 0) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(len(signature)) == signature
    except OSError:
        return False  # said when it is read
