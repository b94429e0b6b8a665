"""Files that are written entirely or not at all, and the reason for a failure in one line."""

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from purinet_jax.errors import InputError
from purinet_jax.interrupts import temporary_paths


def one_line(text: object) -> str:
    """The first line of a text or of an error's message; an error without a message gives its type's name."""
    first = next(iter(str(text).strip().splitlines()), "")
    return first or (type(text).__name__ if isinstance(text, BaseException) else "")


def reason(error: BaseException) -> str:
    """Why an operation failed, in one line: the system's own words for an `OSError`, else the message's first line."""
    return getattr(error, "strerror", None) or one_line(error)


def read_bytes(path: str | Path, name: str | None = None) -> bytes:
    """Returns a file's bytes.

    Raises:
      InputError: the file cannot be read, or is a device, which may not end; the message calls it `name`, or by its
        path if not given.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise OSError(errno.EINVAL, "is a device, not a file")
            return file.read()
    except OSError as error:
        raise InputError(f"{name or path}: cannot be read: {reason(error)}") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder, or a link to one; not if it is a link in a circle or a closed one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_special(path: str | Path) -> bool:
    """Whether there is a device, pipe or socket at a path, which may not end and must not be replaced."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def check_output_file(path: str | Path, overwrite: bool = True) -> None:
    """Checks that a file can be written, before the work for it is done. Writes nothing.

    Raises:
      InputError: its folder does not exist or cannot be written to, `path` is a folder, a device or a pipe, or, without
        `overwrite`, it exists.
    """
    path = Path(path)
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        _check_replaceable(path)
        _check_writable(path.parent)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no folder {path.parent}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path}: exists already; --overwrite replaces it")


def check_output_folder(folder: str | Path) -> None:
    """Checks that files can be written to a folder, or that it can be made. Makes nothing.

    Raises:
      InputError: it cannot be written to or made, or is a file or below one.
    """
    absolute = Path(folder).absolute()
    try:
        _check_writable(next(path for path in (absolute, *absolute.parents) if _exists(path)))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {reason(error)}") from error


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _check_replaceable(path: Path) -> None:
    """Raises OSError if there is something other than a file or folder at a path, or the path cannot be used."""
    if _exists(path) and is_special(path):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _check_writable(folder: Path) -> None:
    """Makes a nameless file in a folder, because permissions do not tell of every file system."""
    tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path next to `path` and renames it to `path` when the block ends without an exception.

    Until then `path` keeps its contents; after an exception, and after a rename that fails, the temporary file is gone.

    Raises:
      OSError: the file cannot be renamed, or `path` is a device, a pipe or a socket, which it would replace.
    """
    path = Path(path)
    _check_replaceable(path)
    # In the same folder, because a rename between file systems is a copy, and a copy can be seen half done.
    temporary = path.parent / f".{secrets.token_hex(8)}.part"
    temporary_paths.add(str(temporary))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        temporary_paths.discard(str(temporary))


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes a file so that, at every moment, its path holds the old contents or the new ones, never a part.

    Args:
      path: the file; its folder must exist.
      data: the contents.

    Raises:
      InputError: the file cannot be written there.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
