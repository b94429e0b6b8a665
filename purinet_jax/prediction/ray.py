"""Archives of pictures (`prediction.ray_files`) on a Ray cluster, one actor per device.
`BatchPredictor` is for Ray Data pipelines of one's own, and needs no Ray itself; `predict_archive` is what `purinet
predict --ray` runs. What has been written is done: lost workers and stopped runs cost only what was under way.
"""

import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.fs import FileSystem

from purinet_jax.data.images import encode
from purinet_jax.errors import InputError
from purinet_jax.prediction.files import check_kind, render_stream
from purinet_jax.prediction.ray_files import (
    Archive,
    Output,
    failed_answers,
    first_line,
    open_parquet,
    read_file,
    report,
)
from purinet_jax.prediction.rendering import Style

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
        from purinet_jax.prediction.predictor import load  # here, because it imports JAX

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
            return (value if stored else read_file(value, self._filesystem)), name(index)

        def deliver(index: int, picture: np.ndarray) -> bytes:
            return encode(picture, self._style.ending, name(index))

        results = list(
            render_stream(self._predictor, batch.num_rows, source, deliver, self._style, batch_size=self._batch_size)
        )
        pictures = [None if isinstance(result, InputError) else result for result in results]
        errors = [str(result) if isinstance(result, InputError) else None for result in results]
        kept = batch.drop_columns("bytes") if stored else batch
        kept = kept.append_column("map", pa.array(pictures, pa.large_binary()))
        return kept.append_column("error", pa.array(errors, pa.string()))


class _Worker:
    """What each actor does: reads, predicts, writes, and reports names and errors."""

    def __init__(self, output: Output, rows: int, filesystem: FileSystem | None, **arguments: Any) -> None:
        self._output, self._rows, self._filesystem = output, rows, filesystem
        self._error: str | None = None
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
            yield report([None], [self._error])

    def _images(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Names and paths as they are; or names and bytes of the row groups that are asked for, or their error."""
        if "path" in batch.column_names:
            yield batch
            return
        for task in batch.to_pylist():
            left = set(task["names"])
            try:
                with open_parquet(task["part"], self._filesystem) as file:
                    rows = file.iter_batches(self._rows, row_groups=[task["group"]], columns=["name", "bytes"])
                    for some in rows:
                        images = pa.Table.from_batches([some])
                        wanted = images.filter(pa.array([str(name) in left for name in images["name"]], pa.bool_()))
                        left -= set(map(str, wanted["name"]))
                        if len(wanted):
                            yield wanted
            except InputError as error:  # damaged behind its names
                yield failed_answers(sorted(left), str(error))


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
        raise InputError(f"--ray {address}: no Ray cluster answers: {first_line(error)}") from error
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
            logger.info("the cluster lost a part: %s", first_line(error))
        # What was written before its worker was lost.
        written = output.done(waiting)
        waiting -= written.keys()
        yield from written.items()
        if waiting:
            logger.info("workers were lost; %s pictures are tried again", f"{len(waiting):,}")
        if len(waiting) == before and rows == 1:
            lost = failed_answers(sorted(waiting), "its worker ended, each time")
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
            compute=ray.data.ActorPoolStrategy(size=min(count, len(tables))),
            max_task_retries=0,
            **_ACTOR[kind],
        )
    reports: Iterator[Any] = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    for part in reports:
        yield from zip(part["name"].to_pylist(), part["error"].to_pylist(), strict=True)


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
