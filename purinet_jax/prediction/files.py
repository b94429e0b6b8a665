"""Name the output files of images and videos, and write them.

Whatever can be refused is refused before the first output is written. Nothing is downloaded; no input is ever replaced,
and no other file unless asked.
"""

import os
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from purinet_jax.data.images import encode
from purinet_jax.errors import InputError
from purinet_jax.files import read_bytes, reason, write_atomically
from purinet_jax.prediction.inputs import (
    INPUT_ENDINGS,
    STANDARD_INPUT,
    Found,
    ending_of,
    find_inputs,
    identity,
    refuse_address,
)
from purinet_jax.prediction.rendering import Kind, Style, check_style, render_stream
from purinet_jax.prediction.video import VIDEO_ENDINGS, check_video, predict_video

if TYPE_CHECKING:  # imports JAX, which bad files need not wait for
    from purinet_jax.prediction.predictor import Predictor

Existing = Literal["refuse", "overwrite", "skip"]

ENDINGS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff"}
"""File endings of the output formats."""

STANDARD = Path(STANDARD_INPUT)
"""Stands for the standard input or output in a `Job`."""

_SAME_ENDING = {".jpeg": ".jpg", ".tif": ".tiff"}


@dataclass(frozen=True, slots=True)
class Job:
    """An image or video and its output file; both may be `STANDARD`."""

    source: Path
    output: Path


@dataclass(frozen=True)
class Result:
    """The outcome of a job: its output is written, or `error` says in one line, which names the file, why not."""

    job: Job
    error: str | None = None


def plan(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    kind: Kind = "map",
    ending: str | None = None,
    transparent: bool = False,
    existing: Existing = "refuse",
    errors: dict[str, str] | None = None,
) -> list[Job]:
    """Finds the images that the inputs name, and names their output files. Nothing is written.

    Without `output`, and where the output folder is the image's own, an image's output lies next to it, as
    `<stem>_<kind>.png`. In another output folder it is `<path below the given folder>/<stem>.png`, so that maps pair
    with masks by name. Images of one folder that differ only in their endings keep these: a.jpg.png and a.png.png.
    Videos keep their format.

    Args:
      inputs: files; folders, searched for images and videos recursively; patterns (`photos/**/*.jpg`); pipes; or `-`
        alone, the standard input. Folders and patterns leave out hidden files, what an earlier run wrote next to an
        image, and the output folder.
      output: a folder, which need not exist; a file, for one input; `-`, the standard output, for one image. `-` is the
        default for pipes and the standard input.
      kind: what is made of the images.
      ending: of the output files, such as ".png"; by default that of `output` if it is a file, or ".png".
      transparent: whether outputs need an alpha channel.
      existing: whether to refuse output files that exist, to overwrite them, or to skip their images.
      errors: where errors of single inputs (missing, not readable, without images) are added, by their paths, so that
        the others are planned; if None, the first one is raised.

    Returns:
      The jobs, in the order of the inputs, those of a folder sorted; each image once.

    Raises:
      InputError: an input is a URL, does not exist or holds no image; an output would replace an image, another output
        or, with "refuse", a file; or `output` does not suit the inputs.
    """
    target = None if output is None else _output_path(output)
    sources = find_inputs([os.fspath(path) for path in inputs], target, videos=kind != "attention", errors=errors)
    if target is None and any(found.piped for found in sources.values()):
        target = str(STANDARD)
    if target is not None and is_file_name(target):
        count = len(sources) + len(errors or ())
        if count > 1:
            raise InputError(f"{target}: one file for {count} images; name a folder")
        named = [(source, target) for source in sources]
        for source in sources:
            _check_ending(source, target, ending, transparent)
    else:
        named = _name_outputs(sources, target, kind, ending or ".png", transparent)
    if transparent:
        opaque = next((file for _, file in named if _output_ending(file, ending) == ".jpg"), None)
        if opaque is not None:
            raise InputError(
                f"{opaque}: jpg cannot be transparent: give cut-outs a --background, or use another format"
            )
    taken = _check_outputs(named)
    if existing == "refuse" and taken:
        more = f", and {len(taken) - 1:,} more" if len(taken) > 1 else ""
        raise InputError(f"{next(iter(taken))}: exists already{more}; --overwrite replaces, --skip-existing keeps")
    if existing == "overwrite" and taken:
        _check_replaced(named, taken)
    kept = taken if existing == "skip" else ()
    return [Job(Path(source), Path(file)) for source, file in named if file not in kept]


def _output_path(output: str | os.PathLike[str]) -> str:
    refuse_address(os.fspath(output), "outputs are written to files only")
    path = str(Path(output))
    return str(STANDARD) if path in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1") else path


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name is that of a video."""
    return ending_of(path) in VIDEO_ENDINGS


def is_file_name(output: str) -> bool:
    """Whether an output means a file: it is the standard output, or ends like a file and is no folder."""
    return output == str(STANDARD) or (ending_of(output) in INPUT_ENDINGS and not os.path.isdir(output))


def _output_ending(output: str | Path, ending: str | None) -> str:
    if str(output) == str(STANDARD):
        return ending or ".png"
    given = ending_of(output)
    return _SAME_ENDING.get(given, given)


def _video_ending(source: str, transparent: bool) -> str:
    """A video keeps its format, except that only WebM holds alpha in degrees."""
    return ".webm" if transparent else ending_of(source)


def _check_ending(source: str, output: str, ending: str | None, transparent: bool) -> None:
    """Refuses a single output file whose ending does not suit."""
    given = _output_ending(output, ending)
    if is_video(source) and not (ending_of(source) == ".gif" and given in ENDINGS.values()):
        wanted = _video_ending(source, transparent)
        if given != wanted or output == str(STANDARD):
            raise InputError(f"{output}: the output of {source} needs the ending {wanted}")
    elif given not in ENDINGS.values():
        raise InputError(f"{output}: images are written as {', '.join(ENDINGS)}")
    elif ending is not None and given != ending:
        raise InputError(f"{output}: does not end in {ending}")


def _name_outputs(
    sources: Mapping[str, Found], folder: str | None, kind: Kind, ending: str, transparent: bool
) -> list[tuple[str, str]]:
    real = cache(os.path.realpath)

    @cache
    def folder_and_suffix(own: str, below: str) -> tuple[str, str]:
        given = own if folder is None else os.path.join("" if folder == "." else folder, below)
        return given, f"_{kind}" if folder is None or real(given) == real(own) else ""

    def path(source: str, found: Found, stem: str) -> str:
        video = is_video(source) and not (found.searched and ending_of(source) == ".gif")
        parent, suffix = folder_and_suffix(os.path.dirname(source), found.below)
        return os.path.join(parent, f"{stem}{suffix}{_video_ending(source, transparent) if video else ending}")

    def stem(source: str) -> str:
        return "stdin" if source == str(STANDARD) else os.path.splitext(os.path.basename(source))[0]

    short = [path(source, found, stem(source)) for source, found in sources.items()]
    count = Counter(short)
    return [
        (source, name if count[name] == 1 else path(source, found, os.path.basename(source)))
        for (source, found), name in zip(sources.items(), short, strict=True)
    ]


def _check_outputs(named: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns the outputs that exist, and of which images.

    Raises InputError if two outputs are the same file, or one is a folder or an image.
    """
    real = cache(os.path.realpath)
    claimed: dict[str, str] = {}
    taken: dict[str, str] = {}
    for source, output in named:
        if output == str(STANDARD):
            continue
        folder, name = os.path.split(output)
        path = os.path.join(real(folder), name)
        if path in claimed:
            raise InputError(f"{output}: both {claimed[path]} and {source} would be written to it")
        claimed[path] = source
        try:
            mode = os.lstat(output).st_mode
        except OSError:  # there is none; if it cannot be written, writing says so
            continue
        taken[output] = source
        if stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and os.path.isdir(output)):
            raise InputError(f"{output}: is a folder")
    for source, _ in named:
        if source in taken:
            raise InputError(f"{source}: the output of {taken[source]} would replace the image {source}")
    return taken


def _check_replaced(named: Sequence[tuple[str, str]], taken: Mapping[str, str]) -> None:
    """Refuses to replace an image by another path, such as a link's."""
    images = {identity(source): source for source, _ in named}
    images.pop(None, None)
    for output, source in taken.items():
        if (image := images.get(identity(output))) is not None:
            raise InputError(f"{output}: the output of {source} would replace the image {image}")


def predict_files(
    predictor: "Predictor", jobs: Sequence[Job], style: Style, *, batch_size: int = 1, progress: bool = False
) -> Generator[Result]:
    """Writes the output files that were planned, each atomically. Folders made for them that stay empty are removed.

    Args:
      predictor: the network.
      jobs: from `plan`, with the style's kind.
      style: how predictions are rendered.
      batch_size: how many images the network takes at once.
      progress: whether to show a bar on stderr for the frames of each video.

    Yields:
      The results, images' before videos', each in the order of the jobs. Close the generator if it may not be
      exhausted.

    Raises:
      InputError: a folder cannot be made or written, the network lacks the attention to be shown, there are only videos
        and they need what is not installed, or `batch_size` is not positive. Nothing is written then.
    """
    images = [job for job in jobs if not (is_video(job.source) and is_video(job.output))]
    videos = [job for job in jobs if is_video(job.source) and is_video(job.output)]
    check_style(predictor, style)
    refusal = _video_refusal(style) if videos else None
    if refusal is not None and not images:
        raise refusal
    with _folders(job.output.parent for job in jobs if job.output != STANDARD):
        yield from _write_files(predictor, images, videos, refusal, style, batch_size, progress)


def _write_files(
    predictor: "Predictor",
    images: Sequence[Job],
    videos: Sequence[Job],
    refusal: InputError | None,
    style: Style,
    batch_size: int,
    progress: bool,
) -> Generator[Result]:
    """`predict_files` for folders that exist; `refusal` is why no video can be rendered, if so."""
    standard_input = _read_standard_input() if any(job.source == STANDARD for job in images) else b""
    piped: dict[Path, bytes] = {}

    def source(index: int) -> tuple[bytes, str]:
        path = images[index].source
        if path == STANDARD:
            return standard_input, "stdin"
        if path in piped:  # a large image is read twice
            return piped.pop(path), str(path)
        data = read_bytes(path)
        if path.is_fifo():
            piped[path] = data
        return data, str(path)

    def deliver(index: int, rendering: np.ndarray, metadata: Mapping[str, Any]) -> None:
        job = images[index]
        data = encode(rendering, _output_ending(job.output, style.ending), str(job.output), metadata)
        if job.output == STANDARD:
            _write_standard_output(data)
        else:
            with suppress(OSError):  # another process that made it may have removed it while it was empty
                job.output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(job.output, data)

    delivered = render_stream(predictor, len(images), source, deliver, style, batch_size=batch_size)
    for job, error in zip(images, delivered, strict=True):
        yield Result(job, None if error is None else str(error))
    for job in videos:
        try:
            if refusal is not None:
                raise InputError(f"{job.source}: {refusal}")
            _make_folder(job.output.parent)
            predict_video(predictor, job.source, job.output, style, batch_size=batch_size, progress=progress)
        except InputError as error:
            yield Result(job, str(error))
        else:
            yield Result(job)


def _video_refusal(style: Style) -> InputError | None:
    """Returns why no video can be rendered, if so."""
    try:
        check_video(style)
    except InputError as error:
        return error
    return None


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise InputError("stdin: is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"stdin: cannot be read: {reason(error)}") from error


def _write_standard_output(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"stdout: cannot be written: {reason(error)}") from error


@contextmanager
def _folders(folders: Iterable[Path]) -> Iterator[None]:
    """Makes folders for outputs, and removes those of them that are empty when the block ends."""
    made: list[Path] = []
    try:
        for folder in dict.fromkeys(folders):
            made += (path for path in reversed((folder, *folder.parents)) if not os.path.lexists(path))
            _make_folder(folder)
        yield
    finally:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()


def _make_folder(folder: Path) -> None:
    """Makes a folder for outputs, and a nameless file in it, since permissions do not tell of every file system."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: is a file or lies below one; outputs need a folder") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {reason(error)}") from error
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{folder}: outputs cannot be written to it: {reason(error)}") from error
