"""What readers of untrusted files share: error messages of one line, and limits to what a file may expand to."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from purinet_jax.errors import InputError, escaped
from purinet_jax.files import one_line, reason
from purinet_jax.zip_files import read_member

# A file may expand to this many times its size, plus 1 MiB for small files. Weights compress by a few per cent, and
# tensors share storages now and then; only a decompression bomb comes near the limit.
_LARGEST_EXPANSION = 64


def printable(name: object) -> str:
    """A name from a file for a message of one line: printable and at most 100 characters; a type's name if no text."""
    text = str(name) if isinstance(name, str) else type(name).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:100])


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Prefixes the message of an `InputError` with the path, unless it is there."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(escaped(f"{Path(path)}: ")):
            raise
        raise InputError(f"{Path(path)}: {error}") from error


@contextmanager
def any_error_named(path: Path) -> Iterator[None]:
    """Turns any error into an `InputError` of one line that starts with the path."""
    with named(path):
        try:
            yield
        except InputError:
            raise
        except FileNotFoundError as error:
            missing = "no such file" if path.parent.is_dir() else f"there is no folder {path.parent}"
            raise InputError(missing) from error
        except OSError as error:
            raise InputError(reason(error)) from error
        except MemoryError as error:
            raise InputError("needs more memory than there is") from error
        except Exception as error:  # parsers of damaged files raise nearly every type of error
            kind, message = type(error).__name__, one_line(error)[:200]
            raise InputError(f"damaged or not what its ending says ({kind}: {message})") from error


def check_expansion(path: Path, size: int) -> None:
    """Raises InputError if a file expands to `size` bytes and that is too much for its own size."""
    if size > _LARGEST_EXPANSION * path.stat().st_size + 2**20:
        raise InputError(f"refused: it expands to more than {_LARGEST_EXPANSION} times the file's size")


@dataclass(frozen=True)
class ZipMembers:
    """An open zip file and its checked members by name."""

    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """The bytes of one member."""
        if name not in self.members:
            raise InputError(f"has no {printable(name)}")
        return read_member(self.file, self.members[name])


@contextmanager
def open_zip(path: Path) -> Iterator[ZipMembers]:
    """Opens a zip file whose members altogether pass `check_expansion`."""
    with zipfile.ZipFile(path) as file:
        members = {member.filename: member for member in file.infolist()}
        name, count = Counter(file.namelist()).most_common(1)[0] if members else ("", 0)
        if count > 1:
            raise InputError(f"has {count} members {printable(name)}")
        check_expansion(path, sum(member.file_size for member in members.values()))
        for name, member in members.items():
            # The other methods decompress without a limit per call.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
                raise InputError(f"{printable(name)} is encrypted or compressed by a method that is not supported")
        yield ZipMembers(file, members)
