"""Archives of pictures on a Ray cluster: folders and Parquet files, wherever pyarrow reads them, one actor per device.
`BatchPredictor` is for Ray Data pipelines of one's own, and needs no Ray itself; `predict_archive` is what `purinet
predict --ray` runs. What has been written is done: lost workers and stopped runs cost only what was under way.
"""

import functools
import hashlib
import io
import logging
import os
import socket
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from purinet_jax.data.images import EXTENSIONS, encode, read_bytes, write_atomically
from purinet_jax.errors import InputError
from purinet_jax.memory import keep_freed_memory
from purinet_jax.prediction.files import check_kind, picture_stream
from purinet_jax.prediction.pictures import Style

logger = logging.getLogger(__name__)

# Pictures that an actor takes at a time, and writes as one Parquet file: at its end the actor's threads wait for each
# other, and of a worker that is lost it is done again.
_ROWS = 128

# What Ray sets aside for an actor, by what it runs on.
_ACTOR: dict[str, dict[str, Any]] = {
    "GPU": {"num_gpus": 1},
    "TPU": {"resources": {"TPU": 1}},
    "CPU": {"num_cpus": 1},
}

# Of Ray's own memory on a cluster of this machine alone, bytes: only names and errors pass through it.
_STORE = 128 << 20

_PARQUET = ".parquet"


class BatchPredictor:
    """Makes the pictures of a batch of images; a callable class for `ray.data.Dataset.map_batches`.

        pool = ray.data.ActorPoolStrategy(size=4)
        dataset.map_batches(BatchPredictor, batch_format="pyarrow", batch_size=128, compute=pool, num_gpus=1)

    The network is loaded once for each actor, and compiled with its first batch.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        size: int | None = None,
        style: Style | None = None,
        batch_size: int = 1,
        filesystem: FileSystem | None = None,
    ) -> None:
        """Loads the network.

        Args:
          checkpoint, size: as of `purinet_jax.load`; the file must be there on every node.
          style: what is made of the images, and, by its ending, in which format; grey maps in PNG if not given.
          batch_size: how many images the network takes at once.
          filesystem: what paths are of; if not given, each is a local one or a URI.

        Raises:
          InputError: as `purinet_jax.load`, or the network lacks what the style shows.
        """
        from purinet_jax.prediction.predict import load  # here, because it imports JAX

        self._style = style or Style()
        self._batch_size = batch_size
        self._filesystem = filesystem
        self._predictor = load(checkpoint, size)
        check_kind(self._predictor, self._style)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Predicts on each row.

        Args:
          batch: with a column `bytes` of image files, or else `path`; and perhaps `name`, by which errors call them.

        Returns:
          The batch, other columns too, but with two columns instead of `bytes`: `map`, the picture's file
          (large_binary), and `error`, one line that says why there is none (string). One of them is null in each row.
        """
        stored = "bytes" in batch.column_names
        files = batch["bytes" if stored else "path"]

        def name(index: int) -> str:
            column = next((column for column in ("name", "path") if column in batch.column_names), None)
            return "image" if column is None else str(batch[column][index])

        def source(index: int) -> tuple[bytes, str]:
            value = files[index].as_py()
            if value is None:
                raise InputError(f"{name(index)}: the row is empty")
            return (value if stored else _read(value, self._filesystem)), name(index)

        def deliver(index: int, picture: np.ndarray) -> bytes:
            return encode(picture, self._style.ending, name(index))

        results = list(
            picture_stream(self._predictor, batch.num_rows, source, deliver, self._style, batch_size=self._batch_size)
        )
        pictures = [None if isinstance(result, InputError) else result for result in results]
        errors = [str(result) if isinstance(result, InputError) else None for result in results]
        kept = batch.drop_columns("bytes") if stored else batch
        kept = kept.append_column("map", pa.array(pictures, pa.large_binary()))
        return kept.append_column("error", pa.array(errors, pa.string()))


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
        raise InputError(f"{uri}: {_line(error)}") from error


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
        raise InputError(f"{text}: cannot be read: {_line(error)}") from error
    paths = sorted(entry.path for entry in inside if entry.type == FileType.File)
    named = ((path, path[len(root) :].lstrip("/")) for path in paths)
    return [(path, name) for path, name in named if not any(part.startswith(".") for part in name.split("/"))]


def _in_parquet(parts: Sequence[str], filesystem: FileSystem | None) -> Archive:
    """The archive in Parquet files; its names, or names and paths, are read."""
    names: list[str] = []
    paths: list[str] = []
    groups: list[tuple[str, int]] = []
    for part in parts:
        with _parquet_file(part, filesystem) as file:
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
def _parquet_file(part: str, filesystem: FileSystem | None) -> Iterator[Any]:
    """Opens a Parquet file. Raises InputError, which names it, whatever of it cannot be read."""
    try:
        with (filesystem or LocalFileSystem()).open_input_file(part) as file:
            yield pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{part}: cannot be read: {_line(error)}") from error


def _read(path: str, filesystem: FileSystem | None) -> bytes:
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
        raise InputError(f"{path}: cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
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
            raise InputError(f"{text}: cannot be used: {_line(error)}") from error
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
            raise InputError(f"{self._root}: is not what an earlier run wrote: {_line(error)}") from error
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
        return _report(names, errors)

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
            return f"{path}: cannot be written: {_line(error)}" if isinstance(error, OSError) else str(error)
        return None


def _stem(name: str) -> str:
    """An image's name without scheme and ending."""
    inside = name.partition("://")[2] or name
    return os.path.splitext(inside)[0] if inside.lower().endswith(EXTENSIONS) else inside


class _Worker:
    """What each actor does: reads, predicts, writes, and reports names and errors."""

    def __init__(self, output: Output, rows: int, filesystem: FileSystem | None, **arguments: Any) -> None:
        self._output, self._rows, self._filesystem = output, rows, filesystem
        self._error: str | None = None
        keep_freed_memory()  # as `purinet predict` does
        try:
            self._predictor = BatchPredictor(filesystem=filesystem, **arguments)
        except InputError as error:  # Ray would show it as tracebacks
            self._error = str(error)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        try:
            if self._error is None:
                for images in self._images(batch):
                    failed = "error" in images.column_names
                    yield self._output.write(images if failed else self._predictor(images))
        except Exception:  # a mistake of ours; as a lost part it would be tried again
            self._error = traceback.format_exc()
        if self._error is not None:
            yield _report([None], [self._error])

    def _images(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Names and paths as they are; or names and bytes of the row groups that are asked for, or their error."""
        if "path" in batch.column_names:
            yield batch
            return
        for task in batch.to_pylist():
            left = set(task["names"])
            try:
                with _parquet_file(task["part"], self._filesystem) as file:
                    rows = file.iter_batches(self._rows, row_groups=[task["group"]], columns=["name", "bytes"])
                    for some in rows:
                        images = pa.Table.from_batches([some])
                        wanted = images.filter(pa.array([str(name) in left for name in images["name"]], pa.bool_()))
                        left -= set(map(str, wanted["name"]))
                        if len(wanted):
                            yield wanted
            except InputError as error:  # damaged behind its names
                yield _failed(sorted(left), str(error))


def _failed(names: Sequence[str], error: str) -> pa.Table:
    """Answers that are one error."""
    maps = pa.nulls(len(names), pa.large_binary())
    return pa.table(
        {"name": pa.array(names, pa.string()), "map": maps, "error": [f"{name}: {error}" for name in names]}
    )


def _report(names: Sequence[str | None], errors: Sequence[str | None]) -> pa.Table:
    return pa.table({"name": pa.array(names, pa.string()), "error": pa.array(errors, pa.string())})


@contextmanager
def ray_cluster(address: str, required: str | None = None) -> Iterator[str]:
    """Connects to a Ray cluster, or, with "local", starts one of this machine alone, on loopback.

    Args:
      address: "local", "auto" or what `ray start` prints (host:port).
      required: "gpu" or "tpu", where nothing else will do.

    Yields:
      What it has, in words.

    Raises:
      InputError: Ray is not installed, nobody answers there, or the cluster has not what is required.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {}
    if address == "local":
        # Whatever the name says: without it Ray listens on the machine's own address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        options = {"include_dashboard": False, "object_store_memory": _STORE}
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("--ray needs Ray: pip install 'purinet_jax[ray]'") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:  # Ray would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        with _silent_stderr():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except Exception as error:  # Ray raises nearly every type, and plain ones
        raise InputError(f"--ray {address}: no Ray cluster answers: {_line(error)}") from error
    try:
        kind, count = _devices()
        if required is not None and kind != required.upper():
            raise InputError(f"--require {required}: the cluster has none")
        nodes = sum(node["Alive"] for node in ray.nodes())
        yield f"Ray, {nodes} node{'s' if nodes > 1 else ''}, {count} {kind}{'s' if count > 1 else ''}"
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keeps from the user what C++ code writes; Ray's says so when its log level is set."""
    sys.stderr.flush()
    ours, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.close(nowhere)


def _devices() -> tuple[str, int]:
    """What actors run on, and how many there are: "GPU", "TPU", or a node's "CPU"."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind in ("GPU", "TPU"):
        count = sum(int(resources.get(kind, 0)) for resources in alive)
        if count:
            return kind, count
    return "CPU", max(1, sum(resources.get("CPU", 0) >= 1 for resources in alive))


def predict_archive(
    archive: Archive,
    output: Output,
    pending: Iterable[str],
    *,
    rows: int = _ROWS,
    **arguments: Any,
) -> Generator[tuple[str, str | None]]:
    """Makes and writes the pictures of an archive on the connected cluster (`ray_cluster`).

    A part whose worker was lost is done again, picture by picture; what ends its worker every time is an error.

    Args:
      archive: the images.
      output: where their pictures go.
      pending: names of those that are to be done.
      rows: how many pictures an actor takes at a time, and a Parquet file holds.
      **arguments: of `BatchPredictor`.

    Yields:
      Each pending name once, in no order, with its error, or None where its picture is written.

    Raises:
      InputError: the network cannot be loaded, or all the cluster is lost.
    """
    import ray
    from ray.exceptions import RayError

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().print_on_execution_start = False
    # A lost worker's parts are given up at once, and done in another round. Ray alone would wait for a node of the same
    # kind to come back, and go on forever with a picture that ends its worker.
    ray.data.DataContext.get_current().max_errored_blocks = -1
    waiting = set(pending)
    while waiting:
        before = len(waiting)
        try:
            for name, error in _reports(archive, output, waiting, rows, arguments):
                if name is None:
                    text = str(error)
                    raise RuntimeError(text) if "\n" in text else InputError(text)
                if name in waiting:
                    waiting.remove(name)
                    yield name, error
        except RayError as error:
            logger.info("the cluster lost a part: %s", _line(error))
        # What was written before its worker was lost.
        written = output.done(waiting)
        waiting -= written.keys()
        yield from written.items()
        if waiting:
            logger.info("workers were lost; %s pictures are tried again", f"{len(waiting):,}")
        if len(waiting) == before and rows == 1:
            lost = _failed(sorted(waiting), "its worker ended, each time")
            yield from zip(*output.write(lost).to_pydict().values(), strict=True)
            return
        rows = 1


def _reports(
    archive: Archive, output: Output, names: Iterable[str], rows: int, arguments: dict[str, Any]
) -> Iterator[tuple[str | None, str | None]]:
    """One round: names and errors, as they come; those of lost workers are missing."""
    import ray

    kind, count = _devices()
    tables = list(_tasks(archive, set(names), rows))
    with warnings.catch_warnings():
        # Ray 2.64 will take no arguments for actors' retries any more.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        dataset = ray.data.from_arrow(tables).map_batches(
            _Worker,
            fn_constructor_kwargs={"output": output, "rows": rows, "filesystem": archive.filesystem, **arguments},
            batch_format="pyarrow",
            batch_size=max(map(len, tables)),
            compute=ray.data.ActorPoolStrategy(size=count),
            max_task_retries=0,
            **_ACTOR[kind],
        )
    reports: Iterator[Any] = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    for report in reports:
        yield from zip(report["name"].to_pylist(), report["error"].to_pylist(), strict=True)


def _tasks(archive: Archive, names: Container[str], rows: int) -> Iterator[pa.Table]:
    """What an actor takes at a time: `rows` names and paths; or a row group and the names of it that are meant, which
    are one each where `rows` is 1."""
    if archive.paths is not None:
        wanted = [(name, path) for name, path in zip(archive.names, archive.paths, strict=True) if name in names]
        for start in range(0, len(wanted), rows):
            yield pa.table(list(zip(*wanted[start : start + rows], strict=True)), names=["name", "path"])
        return
    assert archive.groups is not None
    by_group = groupby(zip(archive.groups, archive.names, strict=True), key=lambda item: item[0])
    for (part, group), items in by_group:
        wanted_here = [name for _, name in items if name in names]
        for chosen in [[name] for name in wanted_here] if rows == 1 else [wanted_here] if wanted_here else []:
            yield pa.table({"part": [part], "group": [group], "names": [chosen]})
