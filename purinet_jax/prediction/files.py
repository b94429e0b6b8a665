"""Find the images that the user names, name their output files, and write these.

Whatever can be refused is refused before the first output is written. Nothing is downloaded; no input is ever replaced,
and no other file unless asked.
"""

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from purinet_jax.data.images import EXTENSIONS, encode
from purinet_jax.errors import InputError
from purinet_jax.files import read_bytes, reason, write_atomically
from purinet_jax.prediction.rendering import KINDS, Kind, Style, check_style, render_stream
from purinet_jax.prediction.video import VIDEO_ENDINGS, check_video, predict_video

if TYPE_CHECKING:  # imports JAX, which bad files need not wait for
    from purinet_jax.prediction.predictor import Predictor

Existing = Literal["refuse", "overwrite", "skip"]

ENDINGS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff"}
"""File endings of the output formats."""

STANDARD = Path("-")
"""Stands for the standard input or output in a `Job`."""

_INPUT_ENDINGS = (*EXTENSIONS, *VIDEO_ENDINGS)
_SAME_ENDING = {".jpeg": ".jpg", ".tif": ".tiff"}


@dataclass(frozen=True)
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
) -> list[Job]:
    """Finds the images that the inputs name, and names their output files. Nothing is written.

    Without `output`, an image's output lies next to it, as `<stem>_<kind>.png`. In an output folder it is
    `<path below the given folder>/<stem>.png`, so that maps pair with masks by name. Images of one folder that differ
    only in their endings keep these: a.jpg.png and a.png.png. Videos keep their format.

    Args:
      inputs: files; folders, searched for images recursively; patterns (`photos/**/*.jpg`); or `-` alone, the standard
        input. Folders and patterns leave out hidden files and what an earlier run wrote next to an image; folders leave
        out the output folder.
      output: a folder, which need not exist; a file, for one input; `-`, the standard output, for one image. `-` is the
        default for the standard input.
      kind: what is made of the images.
      ending: of the output files, such as ".png"; by default that of `output` if it is a file, or ".png".
      transparent: whether outputs need an alpha channel.
      existing: whether to refuse output files that exist, to overwrite them, or to skip their images.

    Returns:
      The jobs, in the order of the inputs, those of a folder sorted; each image once.

    Raises:
      InputError: an input is a URL, does not exist or holds no image; an output would replace an image, another output
        or, with "refuse", a file; or `output` does not suit the inputs.
    """
    target = Path(output) if output is not None else None
    sources = _find([os.fspath(path) for path in inputs], target)
    if target is None and STANDARD in sources:
        target = STANDARD
    if target is not None and _is_file_name(target):
        if len(sources) > 1:
            raise InputError(f"{target}: one file for {len(sources)} images; name a folder")
        jobs = [Job(next(iter(sources)), target)]
        _check_ending(jobs[0], ending, transparent)
    else:
        jobs = _name_outputs(sources, target, kind, ending or ".png", transparent)
    opaque = [job.output for job in jobs if _output_ending(job, ending) == ".jpg"]
    if transparent and opaque:
        raise InputError(f"{opaque[0]}: jpg cannot be transparent: give cut-outs a --background, or use another format")
    _check_paths(jobs)
    taken = [job for job in jobs if job.output != STANDARD and os.path.lexists(job.output)]
    if existing == "skip":
        return [job for job in jobs if job not in taken]
    if taken and existing == "refuse":
        more = f", and {len(taken) - 1:,} more" if len(taken) > 1 else ""
        raise InputError(f"{taken[0].output}: exists already{more}; --overwrite replaces, --skip-existing keeps")
    return jobs


def _find(inputs: Sequence[str], output: Path | None) -> dict[Path, Path]:
    """Returns the files that the inputs name, each with its folder's path below the given folder or pattern."""
    found: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
            raise InputError(f"{text}: is an address, and nothing is fetched; download it first")
        if text == "-" and len(inputs) > 1:
            raise InputError("-: the standard input cannot be one of several")
        if text == "-" or path.is_file():
            found.setdefault(path, Path())
            continue
        if path.is_dir():
            folder, files, otherwise = path, _images_below(path, output), "holds no images"
        elif glob.has_magic(text):
            folder = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
            matches = map(Path, sorted(glob.glob(text, recursive=True)))
            files, otherwise = [file for file in matches if _is_input(file)], "matches no images"
        else:
            raise InputError(f"{text}: no such file or folder")
        inputs_only = [file for file in files if not _is_written(file)]
        if not inputs_only:
            hint = "only what an earlier run wrote" if files else ", ".join(EXTENSIONS)
            raise InputError(f"{folder}: {otherwise} ({hint})")
        for file in inputs_only:
            found.setdefault(file, file.parent.relative_to(folder))
    if not found:
        raise InputError("no images were named")
    return found


def _images_below(folder: Path, output: Path | None) -> list[Path]:
    """Returns the images in a folder and its subfolders, sorted; without hidden ones and without the output folder."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {reason(error)}") from error

    left_out = None if output is None else output.resolve()
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != left_out]
        files += (Path(parent, name) for name in names if not name.startswith("."))
    return sorted(file for file in files if _is_input(file) and not is_video(file))


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_ENDINGS


def _is_input(file: Path) -> bool:
    return file.suffix.lower() in _INPUT_ENDINGS and file.is_file()


def _is_written(file: Path) -> bool:
    """Whether a file is named like the output of an image or video next to it."""
    origin, _, kind = file.stem.rpartition("_")
    if not origin or kind not in KINDS:
        return False
    names = [origin, *(origin + case for ending in _INPUT_ENDINGS for case in (ending, ending.upper()))]
    return any(_is_input(file.parent / name) for name in names)


def _is_file_name(output: Path) -> bool:
    """Whether an output means a file: it is the standard output, or ends like a file and is no folder."""
    return output == STANDARD or (output.suffix.lower() in _INPUT_ENDINGS and not output.is_dir())


def _output_ending(job: Job, ending: str | None) -> str:
    if job.output == STANDARD:
        return ending or ".png"
    return _SAME_ENDING.get(job.output.suffix.lower(), job.output.suffix.lower())


def _video_ending(source: Path, transparent: bool) -> str:
    """A video keeps its format, except that only WebM holds alpha in degrees."""
    return ".webm" if transparent else source.suffix.lower()


def _check_ending(job: Job, ending: str | None, transparent: bool) -> None:
    """Refuses a single output file whose ending does not suit."""
    given = _output_ending(job, ending)
    if is_video(job.source):
        wanted = _video_ending(job.source, transparent)
        if given != wanted or job.output == STANDARD:
            raise InputError(f"{job.output}: the output of {job.source} needs the ending {wanted}")
    elif given not in ENDINGS.values():
        raise InputError(f"{job.output}: images are written as {', '.join(ENDINGS)}")
    elif ending is not None and given != ending:
        raise InputError(f"{job.output}: does not end in {ending}")


def _name_outputs(
    sources: Mapping[Path, Path], folder: Path | None, kind: Kind, ending: str, transparent: bool
) -> list[Job]:
    def path(source: Path, stem: str) -> Path:
        last = _video_ending(source, transparent) if is_video(source) else ending
        if folder is None:
            return source.parent / f"{stem}_{kind}{last}"
        return folder / sources[source] / f"{stem}{last}"

    short = {source: path(source, "stdin" if source == STANDARD else source.stem) for source in sources}
    count = Counter(short.values())
    return [Job(source, name if count[name] == 1 else path(source, source.name)) for source, name in short.items()]


def _check_paths(jobs: Sequence[Job]) -> None:
    """Refuses an output with the path of an image, of another output or of a folder."""
    images = {job.source.resolve(): job.source for job in jobs if job.source != STANDARD}
    claimed: dict[Path, Path] = {}
    for job in jobs:
        if job.output == STANDARD:
            continue
        path = job.output.resolve()
        if path in claimed:
            raise InputError(f"{job.output}: both {claimed[path]} and {job.source} would be written to it")
        if path in images:
            raise InputError(f"{job.output}: the output of {job.source} would replace the image {images[path]}")
        if path.is_dir():
            raise InputError(f"{job.output}: is a folder")
        claimed[path] = job.source


def predict_files(
    predictor: "Predictor", jobs: Sequence[Job], style: Style, *, batch_size: int = 1, progress: bool = False
) -> Generator[Result]:
    """Writes the output files that were planned, each atomically.

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
      InputError: a folder cannot be made, the network lacks the attention to be shown, a video needs what is not
        installed, or `batch_size` is not positive. Nothing is written then.
    """
    images = [job for job in jobs if not is_video(job.source)]
    videos = [job for job in jobs if is_video(job.source)]
    check_style(predictor, style)
    if videos:
        check_video(style)
    for folder in dict.fromkeys(job.output.parent for job in jobs if job.output != STANDARD):
        _make_folder(folder)
    standard_input = sys.stdin.buffer.read() if any(job.source == STANDARD for job in images) else b""

    def source(index: int) -> tuple[bytes, str]:
        path = images[index].source
        return (standard_input, "stdin") if path == STANDARD else (read_bytes(path), str(path))

    def deliver(index: int, rendering: np.ndarray) -> None:
        job = images[index]
        data = encode(rendering, _output_ending(job, style.ending), str(job.output))
        if job.output == STANDARD:
            _write_standard_output(data)
        else:
            write_atomically(job.output, data)

    delivered = render_stream(predictor, len(images), source, deliver, style, batch_size=batch_size)
    for job, error in zip(images, delivered, strict=True):
        yield Result(job, None if error is None else str(error))
    for job in videos:
        try:
            predict_video(predictor, job.source, job.output, style, batch_size=batch_size, progress=progress)
        except InputError as error:
            yield Result(job, str(error))
        else:
            yield Result(job)


def _write_standard_output(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:  # its reader has ended
        raise InputError(f"stdout: cannot be written: {reason(error)}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: is a file or lies below one; outputs need a folder") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {reason(error)}") from error
