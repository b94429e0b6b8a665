"""Archives of pictures as `prediction.ray` takes them: which images there are, in folders or in Parquet files, wherever
pyarrow reads them, and where their pictures go. What has been written is done, whoever asks again.
"""

import functools
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from purinet_jax.data.images import EXTENSIONS
from purinet_jax.errors import InputError
from purinet_jax.files import read_bytes, write_atomically

_PARQUET = ".parquet"


@dataclass(frozen=True, eq=False)
class Archive:
    """Images by name, and where their bytes are.

    Attributes:
      names: of all images, each once; mostly relative paths.
      paths: of their files, in the same order; None where Parquet files hold the bytes.
      groups: for each image, the Parquet file with the columns `name` and `bytes` and the number of its row group;
        None where there are paths.
      filesystem: of paths and Parquet files; None where each path says so itself.
    """

    names: Sequence[str]
    paths: Sequence[str] | None
    groups: Sequence[tuple[str, int]] | None
    filesystem: FileSystem | None


def find_archive(inputs: Iterable[str], output: str) -> Archive:
    """Finds what is meant by what was typed: folders of images, those in folders within too, or of Parquet files.

    Parquet files have the columns `bytes` (of image files) and `name`, or `path` and perhaps `name`.

    Args:
      inputs: local paths, or URIs that pyarrow understands (s3://bucket/photos), of one file system.
      output: what lies there is left out.

    Raises:
      InputError: an input is not there, cannot be read, holds no images or is the output, or two images have one name.
    """
    left_out, below = _place(output)
    filesystem = None
    images: list[tuple[str, str]] = []
    parts: list[str] = []
    for text in inputs:
        its_own, root = _place(text)
        if filesystem not in (None, its_own):
            raise InputError(f"{text}: lies in another file system than the inputs before")
        if (its_own, root) == (left_out, below):
            raise InputError(f"{text}: is the output too; name another")
        filesystem = its_own
        files = [
            (path, name)
            for path, name in _files(text, its_own, root)
            if its_own != left_out or not path.startswith(f"{below}/")
        ]
        pictures = [(path, name) for path, name in files if name.lower().endswith(EXTENSIONS)]
        tables = [path for path, name in files if name.lower().endswith(_PARQUET)]
        if not pictures and not tables:
            raise InputError(f"{text}: holds neither images ({', '.join(EXTENSIONS)}) nor Parquet files")
        images += pictures
        parts += [] if pictures else tables
    if images and parts:
        raise InputError(f"{parts[0]}: is Parquet, other inputs are images; give one kind at a time")
    if images:
        archive = Archive([name for _, name in images], [path for path, _ in images], None, filesystem)
    else:
        archive = _in_parquet(parts, filesystem)
    name, count = Counter(archive.names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{name}: is the name of {count:,} images; each needs its own")
    return archive


def _place(text: str) -> tuple[FileSystem, str]:
    """The file system of a local path or a URI, and the path there."""
    if "://" not in text:
        return LocalFileSystem(), os.path.abspath(text)
    address = urlsplit(text)
    root = f"{address.scheme}://{address.netloc}/" + (f"?{address.query}" if address.query else "")
    filesystem, base = _file_system(root)
    return filesystem, base.rstrip("/") + unquote(address.path).rstrip("/")


@functools.cache  # S3's asks the network for the bucket's region
def _file_system(uri: str) -> tuple[FileSystem, str]:
    try:
        return FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{uri}: {first_line(error)}") from error


def _files(text: str, filesystem: FileSystem, root: str) -> list[tuple[str, str]]:
    """A file, or all in a folder and those within but hidden ones: paths, sorted, and names relative to it."""
    try:
        found = filesystem.get_file_info(root)
        if found.type == FileType.NotFound:
            raise InputError(f"{text}: no such file or folder")
        if found.type == FileType.File:
            return [(root, PurePosixPath(root).name)]
        inside = filesystem.get_file_info(FileSelector(root, recursive=True))
    except OSError as error:
        raise InputError(f"{text}: cannot be read: {first_line(error)}") from error
    paths = sorted(entry.path for entry in inside if entry.type == FileType.File)
    named = ((path, path[len(root) :].lstrip("/")) for path in paths)
    return [(path, name) for path, name in named if not any(part.startswith(".") for part in name.split("/"))]


def _in_parquet(parts: Sequence[str], filesystem: FileSystem | None) -> Archive:
    """The archive in Parquet files; its names, or names and paths, are read."""
    names: list[str] = []
    paths: list[str] = []
    groups: list[tuple[str, int]] = []
    for part in parts:
        with open_parquet(part, filesystem) as file:
            has = set(file.schema_arrow.names)
            stored = {"name", "bytes"} <= has
            if not stored and "path" not in has:
                raise InputError(f"{part}: needs the columns bytes and name, or path; it has {', '.join(sorted(has))}")
            columns = ["name"] if stored else sorted({"name", "path"} & has)
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=columns)
                if any(table[column].null_count for column in columns):
                    raise InputError(f"{part}: has rows without {' or '.join(columns)}")
                names += map(str, table[columns[0]].to_pylist())
                paths += [] if stored else map(str, table["path"].to_pylist())
                groups += [(part, number)] * (len(table) if stored else 0)
    if not names:
        raise InputError(f"{parts[0]}: holds no images")
    if paths and groups:
        raise InputError(f"{groups[0][0]}: holds bytes, other inputs hold paths; give one kind at a time")
    return Archive(names, paths or None, groups or None, filesystem if groups else None)


@contextmanager
def open_parquet(part: str, filesystem: FileSystem | None) -> Iterator[Any]:
    """Opens a Parquet file. Raises InputError, which names it, whatever of it cannot be read."""
    try:
        with (filesystem or LocalFileSystem()).open_input_file(part) as file:
            yield pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{part}: cannot be read: {first_line(error)}") from error


def read_file(path: str, filesystem: FileSystem | None) -> bytes:
    """A file's bytes. Raises InputError, which names it."""
    inside = path
    if filesystem is None:
        filesystem, inside = _place(path)
    if isinstance(filesystem, LocalFileSystem):
        return read_bytes(inside)
    try:
        with filesystem.open_input_file(inside) as file:
            return file.read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


class Output:
    """Where pictures go: a folder of Parquet files if it is called so, or else a tree of pictures."""

    def __init__(self, text: str, names: Iterable[str], ending: str) -> None:
        """Names the place, and all images.

        Args:
          text: a local path or a URI; `….parquet` for Parquet.
          names: of all images, those done too.
          ending: of pictures.

        Raises:
          InputError: it is a file, or a name leaves it.
        """
        self._filesystem, self._root = _place(text)
        self._parquet = text.rstrip("/").lower().endswith(_PARQUET)
        self._ending = ending
        try:
            if self._filesystem.get_file_info(self._root).type == FileType.File:
                raise InputError(f"{text}: is a file; pictures go to a folder, or to a folder of Parquet files")
        except OSError as error:
            raise InputError(f"{text}: cannot be used: {first_line(error)}") from error
        outside = next((name for name in names if ".." in name.split("/")), None)
        if outside is not None:
            raise InputError(f"{outside}: leaves the output; name images otherwise")
        count = Counter(map(_stem, names))
        self._crowded = frozenset(stem for stem in count if count[stem] > 1)

    def done(self, names: Iterable[str]) -> dict[str, str | None]:
        """Those of `names` that are there already, each with its error, or None where it has its picture."""
        if self._filesystem.get_file_info(self._root).type == FileType.NotFound:
            return {}
        if not self._parquet:
            there = {name for _, name in _files(self._root, self._filesystem, self._root)}
            return {name: None for name in names if self._file(name) in there}
        try:
            dataset = pyarrow.dataset.dataset(self._root, filesystem=self._filesystem, format="parquet")
            if not dataset.files:
                return {}
            table = dataset.to_table(columns=["name", "error"])
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self._root}: is not what an earlier run wrote: {first_line(error)}") from error
        known = set(names)
        rows = zip(table["name"].to_pylist(), table["error"].to_pylist(), strict=True)
        return {name: error for name, error in rows if name in known}

    def write(self, answers: pa.Table) -> pa.Table:
        """Writes what was made.

        Args:
          answers: `name`, `map` and `error`. The same names are written to the same files, whoever writes them.

        Returns:
          The same names and errors, with those of writing.
        """
        answers = answers.select(["name", "map", "error"])
        names, errors = answers["name"].to_pylist(), answers["error"].to_pylist()
        if self._parquet:
            buffer = io.BytesIO()
            pq.write_table(answers, buffer, compression="none")  # pictures are compressed
            digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
            failed = self._put(f"part-{digest}{_PARQUET}", buffer.getvalue())
            errors = [failed or error for error in errors]
        else:
            for index, name in enumerate(names):
                if errors[index] is None:
                    errors[index] = self._put(self._file(name), answers["map"][index].as_py())
        return report(names, errors)

    def place(self, name: str) -> str:
        """Where an image's picture is: a file, or the folder of Parquet files."""
        return self._root if self._parquet else f"{self._root}/{self._file(name)}"

    def _file(self, name: str) -> str:
        stem = _stem(name)
        return f"{name if stem in self._crowded else stem}{self._ending}".lstrip("/")

    def _put(self, file: str, data: bytes) -> str | None:
        """Writes a file whole or not at all; None, or the error."""
        path = f"{self._root}/{file}"
        try:
            if isinstance(self._filesystem, LocalFileSystem):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
            else:  # object stores show a file when it is closed
                with self._filesystem.open_output_stream(path) as stream:
                    stream.write(data)
        except (OSError, InputError) as error:
            return f"{path}: cannot be written: {first_line(error)}" if isinstance(error, OSError) else str(error)
        return None


def _stem(name: str) -> str:
    """An image's name without scheme and ending."""
    inside = name.partition("://")[2] or name
    return os.path.splitext(inside)[0] if inside.lower().endswith(EXTENSIONS) else inside


def failed_answers(names: Sequence[str], error: str) -> pa.Table:
    """Answers that are one error."""
    maps = pa.nulls(len(names), pa.large_binary())
    return pa.table(
        {"name": pa.array(names, pa.string()), "map": maps, "error": [f"{name}: {error}" for name in names]}
    )


def report(names: Sequence[str | None], errors: Sequence[str | None]) -> pa.Table:
    return pa.table({"name": pa.array(names, pa.string()), "error": pa.array(errors, pa.string())})
