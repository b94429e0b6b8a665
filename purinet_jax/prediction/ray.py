"""Predict on collections of images with a Ray cluster, one actor per device.

`BatchPredictor` is for Ray Data pipelines and does not import Ray; `predict_collection` is what `purinet predict --ray`
runs. What is written is done, so lost workers and interrupted runs repeat only unfinished tasks.
"""

import itertools
import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.fs import FileSystem

from purinet_jax.data.images import encode
from purinet_jax.errors import InputError
from purinet_jax.files import one_line
from purinet_jax.prediction.ray_files import ImageCollection, Output, failed_results, open_parquet, read_file, report
from purinet_jax.prediction.rendering import Style, check_style, render_stream

logger = logging.getLogger(__name__)

# Images per task, and per Parquet file: threads idle at the end of a task, and a lost worker's task is repeated.
_ROWS = 128

# What Ray reserves for an actor, by its device.
_ACTOR: dict[str, Any] = {"GPU": {"num_gpus": 1}, "TPU": {"resources": {"TPU": 1}}, "CPU": {"num_cpus": 1}}

# Bytes of Ray's object store on a local cluster: only names and errors pass through it.
_STORE = 128 << 20


class BatchPredictor:
    """Predicts on a batch of images and renders the maps; a callable class for `ray.data.Dataset.map_batches`.

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
          checkpoint, size: as of `purinet_jax.load`; every node needs the file.
          style: how predictions are rendered; its ending is the format. Grey maps in PNG by default.
          batch_size: how many images the network takes at once.
          filesystem: of paths; by default, each is a local path or a URI.

        Raises:
          InputError: as `purinet_jax.load`, or the network lacks what the style shows.
        """
        from purinet_jax.prediction.predictor import load  # here, because it imports JAX

        self._style = style or Style()
        self._batch_size = batch_size
        self._filesystem = filesystem
        self._predictor = load(checkpoint, size)
        check_style(self._predictor, self._style)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Predicts on each row.

        Args:
          batch: with a column `bytes` of image files, or else `path`; and optionally `name`, which errors call them by.

        Returns:
          The batch without `bytes`, but with two more columns, one of which is null in each row: `map`, the rendered
          image file (large_binary), and `error`, one line that says why there is none (string).
        """
        stored = "bytes" in batch.column_names
        files = batch["bytes" if stored else "path"]
        name_column = next((column for column in ("name", "path") if column in batch.column_names), None)

        def name(index: int) -> str:
            return "image" if name_column is None else str(batch[name_column][index])

        def source(index: int) -> tuple[bytes, str]:
            value = files[index].as_py()
            if value is None:
                raise InputError(f"{name(index)}: the row is empty")
            return (value if stored else read_file(value, self._filesystem)), name(index)

        def deliver(index: int, rendering: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
            return encode(rendering, self._style.ending, name(index), metadata)

        results = list(
            render_stream(self._predictor, batch.num_rows, source, deliver, self._style, batch_size=self._batch_size)
        )
        maps = [None if isinstance(result, InputError) else result for result in results]
        errors = [str(result) if isinstance(result, InputError) else None for result in results]
        kept = batch.drop_columns("bytes") if stored else batch
        kept = kept.append_column("map", pa.array(maps, pa.large_binary()))
        return kept.append_column("error", pa.array(errors, pa.string()))


class _Worker:
    """An actor: reads, predicts, writes, and reports names and errors."""

    def __init__(self, output: Output, rows: int, filesystem: FileSystem | None, **arguments: Any) -> None:
        self._output, self._rows, self._filesystem = output, rows, filesystem
        self._error: str | None = None
        try:
            self._predictor = BatchPredictor(filesystem=filesystem, **arguments)
        except InputError as error:  # Ray would print a traceback
            self._error = str(error)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        try:
            if self._error is None:
                for images in self._images(batch):
                    failed = "error" in images.column_names
                    yield self._output.write(images if failed else self._predictor(images))
        except Exception:  # a bug; Ray would treat it as a lost task, which is repeated
            self._error = traceback.format_exc()
        if self._error is not None:
            yield report([None], [self._error])

    def _images(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yields names and paths as they are; or names and bytes of the tasks' row groups, or their errors."""
        if "path" in batch.column_names:
            yield batch
            return
        for task in batch.to_pylist():
            remaining = set(task["names"])
            try:
                with open_parquet(task["part"], self._filesystem) as file:
                    for rows in file.iter_batches(self._rows, row_groups=[task["group"]], columns=["name", "bytes"]):
                        images = pa.Table.from_batches([rows])
                        wanted = images.filter(
                            pa.array([str(name) in remaining for name in images["name"]], pa.bool_())
                        )
                        remaining -= set(map(str, wanted["name"]))
                        if len(wanted):
                            yield wanted
            except InputError as error:  # `bytes` is damaged, though `name` is not
                yield failed_results(sorted(remaining), str(error))


@contextmanager
def ray_cluster(address: str, required: str | None = None) -> Iterator[str]:
    """Connects to a Ray cluster, or, with "local", starts one on this machine's loopback interface.

    Args:
      address: "local", "auto" or what `ray start` prints (host:port).
      required: "gpu" or "tpu", or None for any device.

    Yields:
      A description of the cluster: "Ray, 2 nodes, 2 CPUs".

    Raises:
      InputError: Ray is not installed, there is no cluster, or it lacks the required device.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {}
    if address == "local":
        # Despite its name, this makes Ray listen on loopback only.
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
        if host and port.isdecimal() and "/" not in host:  # Ray itself would retry for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        with _silent_stderr():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except Exception as error:  # Ray raises many types, including Exception itself
        raise InputError(f"--ray {address}: no Ray cluster responds: {one_line(error)}") from error
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
    """Discards what C++ code writes to stderr, such as Ray's notice that its log level is set."""
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
    """Returns the kind of device that actors use ("GPU", "TPU", or "CPU", one per node), and how many there are."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind in ("GPU", "TPU"):
        count = sum(int(resources.get(kind, 0)) for resources in alive)
        if count:
            return kind, count
    return "CPU", max(1, sum(resources.get("CPU", 0) >= 1 for resources in alive))


def predict_collection(
    images: ImageCollection, output: Output, pending: Iterable[str], *, rows: int = _ROWS, **arguments: Any
) -> Generator[tuple[str, str | None]]:
    """Predicts on the pending images of a collection and writes the outputs, on the connected cluster (`ray_cluster`).

    The task of a lost worker is repeated image by image; an image that ends its worker every time is an error.

    Args:
      images, output: all images, and where outputs go.
      pending: names of the images to predict on.
      rows: how many images a task takes, and a Parquet file holds.
      **arguments: of `BatchPredictor`.

    Yields:
      Each pending name once, in no order, with its error, or None if its output is written.

    Raises:
      InputError: the network cannot be loaded, or the entire cluster is lost.
    """
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # Lost tasks are given up at once and repeated in another round. Ray itself would wait for a node of the same kind,
    # and retry forever an image that ends its worker.
    context.max_errored_blocks = -1
    waiting = set(pending)
    while waiting:
        before = len(waiting)
        try:
            for name, error in _run_round(images, output, waiting, rows, arguments):
                if name is None:
                    text = str(error)
                    raise RuntimeError(text) if "\n" in text else InputError(text)
                if name in waiting:
                    waiting.remove(name)
                    yield name, error
        except RayError as error:
            logger.info("the cluster lost a task: %s", one_line(error))
        written = output.done(waiting)  # by workers that were lost before they reported
        waiting -= written.keys()
        yield from written.items()
        if waiting:
            logger.info("workers were lost; %s images are repeated", f"{len(waiting):,}")
        if len(waiting) == before and rows == 1:
            lost = failed_results(sorted(waiting), "its worker ended, each time")
            yield from zip(*output.write(lost).to_pydict().values(), strict=True)
            return
        rows = 1


def _run_round(
    images: ImageCollection, output: Output, names: Iterable[str], rows: int, arguments: dict[str, Any]
) -> Iterator[tuple[str | None, str | None]]:
    """Yields names and errors as they arrive; those of lost workers are missing."""
    import ray

    kind, count = _devices()
    tasks = list(_tasks(images, set(names), rows))
    with warnings.catch_warnings():
        # Ray 2.64 removes the arguments for actors' retries.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        dataset = ray.data.from_arrow(tasks).map_batches(
            _Worker,
            fn_constructor_kwargs={"output": output, "rows": rows, "filesystem": images.filesystem, **arguments},
            batch_format="pyarrow",
            batch_size=max(map(len, tasks)),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(tasks))),
            max_task_retries=0,
            **_ACTOR[kind],
        )
    reports: Iterator[Any] = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    for part in reports:
        yield from zip(part["name"].to_pylist(), part["error"].to_pylist(), strict=True)


def _tasks(images: ImageCollection, names: Container[str], rows: int) -> Iterator[pa.Table]:
    """Yields tasks: `rows` names and paths; or a row group and the wanted names in it, one per task if `rows` is 1."""
    groups = images.groups or itertools.repeat(None)
    wanted = [image for image in zip(images.names, images.paths, groups, strict=False) if image[0] in names]
    if images.groups is None:
        for start in range(0, len(wanted), rows):
            own_names, paths, _ = zip(*wanted[start : start + rows], strict=True)
            yield pa.table([own_names, paths], names=["name", "path"])
        return
    for (part, group), members in itertools.groupby(wanted, key=itemgetter(1, 2)):
        together = [name for name, _, _ in members]
        for task in [[name] for name in together] if rows == 1 else [together]:
            yield pa.table({"part": [part], "group": [group], "names": [task]})
