"""Zip files from strangers: nothing is unpacked that the size of the file does not warrant."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# What a file unfolds to may be this many times its own size, plus a mebibyte for small files. Weights
# compress by a few per cent and tensors share storages now and then; only bombs come near it.
_LARGEST_EXPANSION = 64


class Unusable(Exception):
    """What is wrong with a file, said without its name; whoever opens files adds that."""


def readable(name: object) -> str:
    """A name out of a file, fit for a message of one line: printable and short."""
    text = str(name) if isinstance(name, str) else type(name).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:100])


class Room:
    """How much a file may still unfold to: a multiple of its size on disk."""

    def __init__(self, path: Path) -> None:
        self.left = _LARGEST_EXPANSION * path.stat().st_size + 2**20

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Unusable(f"refuses what unfolds to more than {_LARGEST_EXPANSION} times the file's size")


@dataclass(frozen=True)
class Archive:
    """An open zip file, its sizes checked, and its members by name."""

    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """The bytes of one member, its checksum compared."""
        if name not in self.members:
            raise Unusable(f"has no {readable(name)}")
        member = self.members[name]
        with self.file.open(member) as stream:
            # A size is given since `read()` without one unpacks all there is, whatever the directory
            # promised.
            content = stream.read(member.file_size)
            if stream.read(1) or len(content) != member.file_size:
                raise Unusable(f"{readable(name)} is not as long as promised")
        return content


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """A zip file whose members, all together, fit the room that its size gives."""
    room = Room(path)
    with zipfile.ZipFile(path) as file:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in file.infolist():
            name = readable(member.filename)
            if member.filename in members:
                raise Unusable(f"has two members {name}")
            # The other methods unpack without a bound on what one call may return.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 0x1:
                raise Unusable(f"{name} is encrypted or compressed by a method that is not read")
            room.take(member.file_size)
            members[member.filename] = member
        yield Archive(file, members)
