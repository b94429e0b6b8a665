"""Data sets in zip and tar files, read without unpacking them to a folder.

Archives are not trusted: a member that leaves the folder, is a link, is encrypted, or claims to unpack to more than is
sensible raises an `InputError` that names it.
"""

import errno
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
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from purinet_jax.data.images import EXTENSIONS
from purinet_jax.errors import InputError
from purinet_jax.files import reason
from purinet_jax.interrupts import remove_temporary, temporary_paths
from purinet_jax.zip_files import read_member

logger = logging.getLogger(__name__)

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
"""File name extensions, in lower case, by which an archive is recognised in a folder."""

_MEMBER_LIMIT = 1 << 30  # bytes; far above any image of permitted size
_INFLATION = 100  # times a compressed tar's size; images hardly compress
_HEADER_LIMIT = 1 << 20  # bytes; more than any honest header needs

# By their first bytes, the archives that Python's libraries cannot read without another program.
_UNREADABLE = {
    b"Rar!\x1a\x07": "rar",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
}

_Opened = TypeVar("_Opened")


class OncePerProcess(Generic[_Opened]):
    """Opens something at the first `get` in each process, because handles cannot be sent to worker processes."""

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
    """A zip file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = OncePerProcess(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return Zip, (self.path,)

    def _open(self) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        """Opens the zip, and finds its images by their paths inside."""
        try:
            archive = zipfile.ZipFile(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {reason(error)}") from error
        except Exception as error:  # a damaged zip raises BadZipFile, NotImplementedError, UnicodeDecodeError …
            raise InputError(f"{self.path}: not a zip file, or a damaged one: {error}") from error
        found = {}
        for member in archive.infolist():
            path = _checked_member_path(self.path, member.orig_filename)
            if path.endswith("/"):
                continue
            if member.flag_bits & 1:
                raise InputError(f"{self.path}: the member {member.orig_filename!r} is encrypted")
            # zipfile ends a name at a zero byte.
            path = _checked_member_path(self.path, member.filename)
            if is_image_path(path):
                found[path] = member
        return archive, found

    def images(self) -> list[tuple[str, int]]:
        """Lists the image files: paths inside with forward slashes, and sizes in bytes.

        Raises:
          InputError: this is no zip, or a member leaves the folder or is encrypted.
        """
        return [(path, member.file_size) for path, member in self._archive.get()[1].items()]

    def read(self, member: str) -> bytes:
        """Returns the bytes of a file. Raises an InputError that names it."""
        archive, members = self._archive.get()
        try:
            information = members[member]
            if information.file_size > _MEMBER_LIMIT:
                raise InputError(f"{self.path}/{member}: unpacks to {information.file_size:,} bytes")
            return read_member(archive, information)
        except InputError:
            raise
        except Exception as error:  # a damaged zip raises BadZipFile, zlib.error, EOFError, OSError, KeyError …
            raise InputError(f"{self.path}/{member}: damaged in the zip: {error}") from error


# The tar without compression, and offset and size of its images by path inside.
_Contents = tuple[Path, dict[str, tuple[int, int]]]


class Tar:
    """A tar file; one that is compressed by gzip is decompressed once, into a temporary file."""

    def __init__(self, path: Path, contents: _Contents | None = None) -> None:
        self.path = path
        self._known = contents
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process ends before this one, so it can read the same temporary file.
        return Tar, (self.path, self._known)

    def _contents(self) -> _Contents:
        with self._lock:
            if self._known is None:
                try:
                    plain = self._decompressed() if _starts_with(self.path, b"\x1f\x8b") else self.path
                    self._known = plain, self._find(plain)
                except InputError:
                    raise
                except Exception as error:  # a damaged tar raises TarError, zlib.error, EOFError, OSError …
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise InputError(
                            f"{self.path}: does not fit, decompressed, into {tempfile.gettempdir()} (TMPDIR)"
                        ) from error
                    raise InputError(f"{self.path}: not a tar file, or a damaged one: {reason(error)}") from error
            return self._known

    def _decompressed(self) -> Path:
        """Returns a temporary file with the tar without compression, which is deleted along with this object."""
        limit = _MEMBER_LIMIT + _INFLATION * self.path.stat().st_size
        descriptor, name = tempfile.mkstemp(prefix="purinet-", suffix=".tar")
        temporary_paths.add(name)
        weakref.finalize(self, remove_temporary, name)
        logger.info("%s: decompressed into a temporary file", self.path)
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
                path = _checked_member_path(self.path, member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    kind = "a link" if member.islnk() or member.issym() else "not a plain file"
                    raise InputError(f"{self.path}: the member {member.name!r} is {kind}")
                name = str(PurePosixPath(path))  # without the "./" of `tar c .`
                if is_image_path(name):
                    found[name] = member.offset_data, member.size
        return found

    def images(self) -> list[tuple[str, int]]:
        """Lists the image files: paths inside with forward slashes, and sizes in bytes.

        Raises:
          InputError: this is no tar, or a member leaves the folder, is a link or no file.
        """
        return [(name, size) for name, (_, size) in self._contents()[1].items()]

    def read(self, member: str) -> bytes:
        """Returns the bytes of a file. Raises an InputError that names it."""
        plain, members = self._contents()
        if member not in members:
            raise InputError(f"{self.path}/{member}: not in the tar")
        offset, size = members[member]
        if size > _MEMBER_LIMIT:
            raise InputError(f"{self.path}/{member}: unpacks to {size:,} bytes")
        try:
            with open(plain, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise InputError(f"{self.path}/{member}: cannot be read: {reason(error)}") from error
        if len(data) != size:
            raise InputError(f"{self.path}/{member}: damaged in the tar: it ends early")
        return data


class _Headers(io.BufferedReader):
    """A file that tarfile finds members in, without headers that are long only to fill memory."""

    def __init__(self, path: Path, plain: Path) -> None:
        super().__init__(io.FileIO(plain))
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _HEADER_LIMIT:
            raise InputError(f"{self._path}: has a header of more than {_HEADER_LIMIT:,} bytes")
        return super().read(size)


def open_archive(path: Path) -> Zip | Tar:
    """Opens a zip or tar, told apart by its first bytes. Raises InputError for kinds that must be unpacked first."""
    for signature, kind in _UNREADABLE.items():
        if _starts_with(path, signature):
            raise InputError(f"{path}: a {kind} archive, which is not read; unpack it (unar {path.name}) first")
    return Tar(path) if _starts_with(path, b"\x1f\x8b") or _starts_with(path, b"ustar", 257) else Zip(path)


def without_ending(name: str) -> str:
    """Strips an archive's extension: "DUTS-TE" for `DUTS-TE.zip` and for `DUTS-TE.tar.gz`."""
    return re.sub(r"(\.(zip|tar|tar\.gz|tgz))+$", "", name, flags=re.IGNORECASE)


def is_image_path(path: str) -> bool:
    """Whether a path inside a data set is that of an image file, and no part of it is ignored."""
    return path.lower().endswith(EXTENSIONS) and not any(map(is_ignored, path.split("/")))


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, added by macOS, or holds superpixels that release 0.2 stored."""
    return name.startswith((".", "__MACOSX")) or name.endswith(".superpixels")


def _checked_member_path(path: Path, member: str) -> str:
    """Returns a member's path with forward slashes, in place of the backslashes of some programs on Windows."""
    inside = member.replace("\\", "/")
    # Nothing is unpacked to a path, but an archive with such names was made to harm.
    if inside.startswith("/") or re.match("[A-Za-z]:", inside) or ".." in inside.split("/"):
        raise InputError(f"{path}: the member {member!r} leaves the folder")
    return inside


def _starts_with(path: Path, signature: bytes, offset: int = 0) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(len(signature)) == signature
    except OSError:
        return False  # reading it raises the error
