"""Input and output of `prediction.ray`: folders of images or Parquet files, on any file system that pyarrow reads.

Outputs that exist are done, whichever run or worker wrote them.
"""

import functools
import hashlib
import io
import os
from collections import Counter, defaultdict
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
from purinet_jax.data.results import own_results
from purinet_jax.errors import InputError
from purinet_jax.files import one_line, read_bytes, write_atomically

_PARQUET = ".parquet"


@dataclass(frozen=True, eq=False)
class ImageCollection:
    """Names of images, and where their bytes are.

    Attributes:
      names: of all images, each once; usually relative paths.
      paths: for each image, its file, or the Parquet file that holds it in the columns `name` and `bytes`.
      groups: for each image, the index of its row group in the Parquet file; None for image files.
      filesystem: of the paths; None if each is a local path or a URI.
    """

    names: Sequence[str]
    paths: Sequence[str]
    groups: Sequence[int] | None
    filesystem: FileSystem | None


def find_images(inputs: Iterable[str], output: str) -> ImageCollection:
    """Finds the images in folders, searched recursively, or in Parquet files.

    Parquet files have the columns `bytes` (of image files) and `name`, or `path` and optionally `name`.

    Args:
      inputs: local paths, or URIs that pyarrow understands (s3://bucket/photos), of one file system.
      output: where outputs are written; files there are left out, and what an earlier run wrote next to images.

    Raises:
      InputError: an input does not exist, cannot be read, holds no images or is the output, or two images have one
        name.
    """
    output_system, output_root = _resolve(output)
    filesystem = None
    images: list[tuple[str, str]] = []
    tables: list[str] = []
    for text in inputs:
        own_system, root = _resolve(text)
        if filesystem not in (None, own_system):
            raise InputError(f"{text}: lies in another file system than the inputs before")
        if (own_system, root) == (output_system, output_root):
            raise InputError(f"{text}: is the output too; name another")
        filesystem = own_system
        files = _files(text, own_system, root)
        if own_system == output_system:
            files = [(path, name) for path, name in files if not path.startswith(f"{output_root}/")]
        found = _without_results([(path, name) for path, name in files if name.lower().endswith(EXTENSIONS)])
        parquet = [path for path, name in files if name.lower().endswith(_PARQUET)]
        if not found and not parquet:
            raise InputError(f"{text}: holds neither images ({', '.join(EXTENSIONS)}) nor Parquet files")
        images += found
        tables += [] if found else parquet
    if images and tables:
        raise InputError(f"{tables[0]}: is Parquet, other inputs are images; give one kind at a time")
    if images:
        paths, names = zip(*images, strict=True)
        collection = ImageCollection(list(names), list(paths), None, filesystem)
    else:
        collection = _read_names(tables, filesystem)
    name, count = Counter(collection.names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{name}: is the name of {count:,} images; each needs its own")
    return collection


def _resolve(text: str) -> tuple[FileSystem, str]:
    """Returns the file system of a local path or a URI, and the path there."""
    if "://" not in text:
        return LocalFileSystem(), os.path.abspath(text)
    uri = urlsplit(text)
    root = f"{uri.scheme}://{uri.netloc}/" + (f"?{uri.query}" if uri.query else "")
    filesystem, base = _file_system(root)
    return filesystem, base.rstrip("/") + unquote(uri.path).rstrip("/")


@functools.cache  # S3 requests the bucket's region over the network
def _file_system(uri: str) -> tuple[FileSystem, str]:
    try:
        return FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{uri}: {one_line(error)}") from error


def _files(text: str, filesystem: FileSystem, root: str) -> list[tuple[str, str]]:
    """Returns a file, or all in a folder but hidden ones, recursively: paths, sorted, and names relative to `root`."""
    try:
        found = filesystem.get_file_info(root)
        if found.type == FileType.NotFound:
            raise InputError(f"{text}: no such file or folder")
        if found.type == FileType.File:
            return [(root, PurePosixPath(root).name)]
        inside = filesystem.get_file_info(FileSelector(root, recursive=True))
    except OSError as error:
        raise InputError(f"{text}: cannot be read: {one_line(error)}") from error
    paths = sorted(entry.path for entry in inside if entry.type == FileType.File)
    named = ((path, path[len(root) :].lstrip("/")) for path in paths)
    return [(path, name) for path, name in named if not any(part.startswith(".") for part in name.split("/"))]


def _without_results(files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leaves out, of paths and names, what an earlier run wrote next to images."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path, _ in files:
        folder, _, file = path.rpartition("/")
        by_folder[folder].append(file)
    results = {f"{folder}/{file}" for folder, inside in by_folder.items() for file in own_results(inside)}
    return [(path, name) for path, name in files if path not in results]


def _read_names(tables: Sequence[str], filesystem: FileSystem | None) -> ImageCollection:
    """Returns the images of Parquet files, of which only names, or names and paths, are read."""
    names: list[str] = []
    paths: list[str] = []
    groups: list[int] = []
    for part in tables:
        with open_parquet(part, filesystem) as file:
            has = set(file.schema_arrow.names)
            stored = {"name", "bytes"} <= has
            if not stored and "path" not in has:
                raise InputError(f"{part}: needs the columns bytes and name, or path; it has {', '.join(sorted(has))}")
            columns = ["name"] if stored else sorted({"name", "path"} & has)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                if any(table[column].null_count for column in columns):
                    raise InputError(f"{part}: has rows without {' or '.join(columns)}")
                names += map(str, table[columns[0]].to_pylist())
                paths += [part] * len(table) if stored else map(str, table["path"].to_pylist())
                groups += [group] * len(table) if stored else []
    if not names:
        raise InputError(f"{tables[0]}: holds no images")
    if 0 < len(groups) < len(names):
        raise InputError(f"{tables[0]} and others: some hold bytes, others paths; give one kind at a time")
    return ImageCollection(names, paths, groups or None, filesystem if groups else None)


@contextmanager
def open_parquet(part: str, filesystem: FileSystem | None) -> Iterator[Any]:
    """Opens a Parquet file. Raises InputError, which names it, if any of it cannot be read."""
    try:
        with (filesystem or LocalFileSystem()).open_input_file(part) as file:
            yield pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{part}: cannot be read: {one_line(error)}") from error


def read_file(path: str, filesystem: FileSystem | None) -> bytes:
    """Returns a file's bytes. Raises InputError, which names it, if it cannot be read."""
    inside = path
    if filesystem is None:
        filesystem, inside = _resolve(path)
    if isinstance(filesystem, LocalFileSystem):
        return read_bytes(inside)
    try:
        with filesystem.open_input_file(inside) as file:
            return file.read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from error


class Output:
    """Where outputs go: a folder of Parquet files if its name ends in `.parquet`, otherwise a folder of images."""

    def __init__(self, text: str, names: Iterable[str], ending: str) -> None:
        """Checks the output folder and the names.

        Args:
          text: a local path or a URI.
          names: of all images, those done too.
          ending: of the image files.

        Raises:
          InputError: `text` is a file, or a name leads out of it.
        """
        self._filesystem, self._root = _resolve(text)
        self._parquet = text.rstrip("/").lower().endswith(_PARQUET)
        self._ending = ending
        try:
            if self._filesystem.get_file_info(self._root).type == FileType.File:
                raise InputError(f"{text}: is a file; outputs go to a folder, or to a folder of Parquet files")
        except OSError as error:
            raise InputError(f"{text}: cannot be used: {one_line(error)}") from error
        outside = next((name for name in names if ".." in name.split("/")), None)
        if outside is not None:
            raise InputError(f"{outside}: leaves the output; name images otherwise")
        count = Counter(map(_stem, names))
        self._shared_stems = frozenset(stem for stem in count if count[stem] > 1)

    def done(self, names: Iterable[str]) -> dict[str, str | None]:
        """Returns those of `names` that are written, each with its error, or None if it has its output."""
        if self._filesystem.get_file_info(self._root).type == FileType.NotFound:
            return {}
        if not self._parquet:
            existing = {name for _, name in _files(self._root, self._filesystem, self._root)}
            return {name: None for name in names if self._file(name) in existing}
        try:
            dataset = pyarrow.dataset.dataset(self._root, filesystem=self._filesystem, format="parquet")
            if not dataset.files:
                return {}
            table = dataset.to_table(columns=["name", "error"])
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self._root}: is not what an earlier run wrote: {one_line(error)}") from error
        known = set(names)
        rows = zip(table["name"].to_pylist(), table["error"].to_pylist(), strict=True)
        return {name: error for name, error in rows if name in known}

    def write(self, results: pa.Table) -> pa.Table:
        """Writes results.

        Args:
          results: `name`, `map` and `error`. The same names are written to the same files, whichever worker writes.

        Returns:
          The same names and errors, including those of writing.
        """
        results = results.select(["name", "map", "error"])
        names, errors = results["name"].to_pylist(), results["error"].to_pylist()
        if self._parquet:
            buffer = io.BytesIO()
            pq.write_table(results, buffer, compression="none")  # images are compressed
            digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
            failed = self._write_file(f"part-{digest}{_PARQUET}", buffer.getvalue())
            errors = [failed or error for error in errors]
        else:
            for index, name in enumerate(names):
                if errors[index] is None:
                    errors[index] = self._write_file(self._file(name), results["map"][index].as_py())
        return report(names, errors)

    def path(self, name: str) -> str:
        """Returns the file of an image's output, or the folder of Parquet files."""
        return self._root if self._parquet else f"{self._root}/{self._file(name)}"

    def _file(self, name: str) -> str:
        stem = _stem(name)
        return f"{name if stem in self._shared_stems else stem}{self._ending}".lstrip("/")

    def _write_file(self, file: str, data: bytes) -> str | None:
        """Writes a file atomically; returns None, or the error."""
        path = f"{self._root}/{file}"
        try:
            if isinstance(self._filesystem, LocalFileSystem):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
            else:  # object stores show a file when it is closed
                with self._filesystem.open_output_stream(path) as stream:
                    stream.write(data)
        except InputError as error:
            return str(error)
        except OSError as error:
            return f"{path}: cannot be written: {one_line(error)}"
        return None


def _stem(name: str) -> str:
    """Returns an image's name without scheme and ending."""
    inside = name.partition("://")[2] or name
    return os.path.splitext(inside)[0] if inside.lower().endswith(EXTENSIONS) else inside


def failed_results(names: Sequence[str], error: str) -> pa.Table:
    """Returns results of which each is the same error."""
    maps = pa.nulls(len(names), pa.large_binary())
    return report(names, [f"{name}: {error}" for name in names]).add_column(1, "map", maps)


def report(names: Sequence[str | None], errors: Sequence[str | None]) -> pa.Table:
    """Returns a table of names and errors."""
    return pa.table({"name": pa.array(names, pa.string()), "error": pa.array(errors, pa.string())})
