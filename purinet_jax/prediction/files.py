"""Files in, files out: which images are meant by what was typed, where each one's picture goes, and the way from one to
the other. Whatever can be refused is refused before the first picture is made; nothing is fetched, and no input and,
unless asked, no other file is ever replaced.
"""

import glob
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import EXTENSIONS, count_pixels, encode, read_srgb
from purinet_jax.errors import InputError
from purinet_jax.files import read_bytes, write_atomically
from purinet_jax.prediction.rendering import KINDS, Kind, Style, render
from purinet_jax.prediction.stream import SquareImage, checked_size, inference_stream
from purinet_jax.prediction.video import check_video, predict_video

# What is wrong with files can be said without JAX, at once.
if TYPE_CHECKING:
    from purinet_jax.prediction.predictor import Predictor

Existing = Literal["refuse", "overwrite", "skip"]

_Delivered = TypeVar("_Delivered")

ENDINGS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff"}
"""The endings of the formats that pictures are written in."""

VIDEO_ENDINGS = (".gif", ".mp4", ".webm")
"""Endings, in lower case, by which a video is recognised."""

STANDARD = Path("-")
"""The standard input or output in a path's place."""

_SAME_ENDING = {".jpeg": ".jpg", ".tif": ".tiff"}

# Images of more pixels are in memory one at a time, and read a second time when their map is there.
_LARGE = 1 << 24
_large_image = threading.Lock()


@dataclass(frozen=True)
class Job:
    """One image or video and the file that its picture goes to; both may be `STANDARD`."""

    source: Path
    output: Path


@dataclass(frozen=True)
class Result:
    """What came of a job: its picture is written, or `error` says in one line, which names the file, why not."""

    job: Job
    error: str | None = None


@dataclass(frozen=True)
class _Source:
    """A file to predict on, and its folder's path below the folder or pattern that was given."""

    path: Path
    below: Path = Path()


def plan(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    kind: Kind = "map",
    ending: str | None = None,
    transparent: bool = False,
    existing: Existing = "refuse",
) -> list[Job]:
    """Finds the images that are meant and says where their pictures go. Nothing is written.

    Without `output`, a picture goes beside its image, as `<stem>_<kind>.png`. In an output folder it is
    `<path below the given folder>/<stem>.png`, so that maps pair with masks by name. Where two images would share a
    name (a.jpg and a.png), both keep their ending in it: a.jpg.png and a.png.png. Videos keep their format.

    Args:
      inputs: files; folders, of which the images are taken, those in folders within too; patterns (`photos/**/*.jpg`);
        or `-` alone, the standard input. Hidden files are left out of folders and patterns, and so is what an earlier
        run wrote beside an image and what lies in the output folder.
      output: a folder, which need not exist; a file, for one input; `-`, the standard output, for one image; where the
        input is the standard one, `-` is the default.
      kind: what is made of the images.
      ending: that of the pictures, such as ".png"; by default that of `output` if it is a file, or ".png".
      transparent: whether pictures need an alpha channel.
      existing: what to do with pictures that there are: refuse, overwrite them, or leave them and skip their images.

    Returns:
      The jobs, in the order of the inputs, those of a folder sorted; each image once.

    Raises:
      InputError: an input is a URL, does not exist or holds no image; a picture would replace an image, another one's
        picture or, with "refuse", a file; or the output does not fit.
    """
    folder = Path(output) if output is not None else None
    sources = _find([os.fspath(path) for path in inputs], folder)
    if folder is None and sources[0].path == STANDARD:
        folder = STANDARD
    single = folder is not None and _is_file_name(folder)
    if folder is not None and single:
        if len(sources) > 1:
            raise InputError(f"{folder}: one file for {len(sources)} images; name a folder")
        jobs = [Job(sources[0].path, folder)]
        _check_endings(jobs[0], ending, transparent)
    else:
        jobs = _name_outputs(sources, folder, kind, ending or ".png", transparent)
        if transparent and ending == ".jpg" and any(not is_video(job.source) for job in jobs):
            raise InputError("jpg cannot be transparent: give cut-outs a --background, or take png, webp or tiff")
    _check_places(jobs)
    there = [job for job in jobs if job.output != STANDARD and os.path.lexists(job.output)]
    if existing == "skip":
        return [job for job in jobs if job not in there]
    if there and existing == "refuse":
        more = f", and {len(there) - 1:,} more" if len(there) > 1 else ""
        raise InputError(f"{there[0].output}: exists already{more}; --overwrite replaces, --skip-existing keeps")
    return jobs


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_ENDINGS


def _find(inputs: Sequence[str], output: Path | None) -> list[_Source]:
    found: list[_Source] = []
    for text in inputs:
        path = Path(text)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
            raise InputError(f"{text}: is an address, and nothing is fetched; download it first")
        if text == "-":
            if len(inputs) > 1:
                raise InputError("-: the standard input cannot be one of several")
            found.append(_Source(STANDARD))
        elif path.is_dir():
            found += _inside(path, _images_below(path, output), "holds no images")
        elif path.is_file():
            found.append(_Source(path))
        elif glob.has_magic(text):
            fixed = Path(*_take_fixed(path.parts))
            matches = (Path(match) for match in sorted(glob.glob(text, recursive=True)))
            files = [file for file in matches if _is_image(file) or is_video(file)]
            found += _inside(fixed, [file for file in files if file.is_file()], "matches no images")
        else:
            raise InputError(f"{text}: no such file or folder")
    if not found:
        raise InputError("no images were named")
    return list({source.path: source for source in reversed(found)}.values())[::-1]


def _images_below(folder: Path, output: Path | None) -> list[Path]:
    """The images in a folder and those within, sorted; without hidden ones and without the output folder."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error

    left_out = None if output is None else output.resolve()
    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(place, name).resolve() != left_out]
        files += (Path(place, name) for name in names if not name.startswith("."))
    return sorted(file for file in files if _is_image(file) and file.is_file())


def _inside(folder: Path, files: Sequence[Path], otherwise: str) -> Iterator[_Source]:
    """Sources of files below a folder, but for those that an earlier run wrote."""
    kept = [file for file in files if not _is_written(file)]
    if not kept:
        hint = "only what an earlier run wrote" if files else f"{', '.join(EXTENSIONS)}"
        raise InputError(f"{folder}: {otherwise} ({hint})")
    return (_Source(file, file.parent.relative_to(folder)) for file in kept)


def _is_written(file: Path) -> bool:
    """Whether a file is called as the picture of an image or video that lies beside it."""
    origin, _, kind = file.stem.rpartition("_")
    if not origin or kind not in KINDS:
        return False
    candidates = [Path(origin), *(Path(origin + ending) for ending in (*EXTENSIONS, *VIDEO_ENDINGS))]
    upper = [path.with_suffix(path.suffix.upper()) for path in candidates]
    return any((_is_image(path) or is_video(path)) and (file.parent / path).is_file() for path in candidates + upper)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in EXTENSIONS


def _take_fixed(parts: Sequence[str]) -> Sequence[str]:
    """The parts of a pattern before the first that has a wildcard, and never the last."""
    for index, part in enumerate(parts):
        if glob.has_magic(part):
            return parts[:index]
    return parts[:-1]


def _is_file_name(output: Path) -> bool:
    """Whether an output is meant as a file: the standard output, or called so and no folder."""
    known = (*EXTENSIONS, *VIDEO_ENDINGS)
    return output == STANDARD or (output.suffix.lower() in known and not output.is_dir())


def _check_endings(job: Job, ending: str | None, transparent: bool) -> None:
    """Refuses a single output file whose ending does not suit."""
    given = _ending(job.output) if job.output != STANDARD else (ending or ".png")
    if is_video(job.source) or given in VIDEO_ENDINGS:
        wanted = _video_ending(job.source, transparent) if is_video(job.source) else "an image's"
        if given != wanted or job.output == STANDARD:
            raise InputError(f"{job.output}: what is made of {job.source} needs the ending {wanted}")
        return
    if given not in ENDINGS.values():
        raise InputError(f"{job.output}: pictures are written as {', '.join(ENDINGS)}")
    if ending is not None and given != ending:
        raise InputError(f"{job.output}: does not end in {ending}")
    if transparent and given == ".jpg":
        raise InputError(
            f"{job.output}: jpg cannot be transparent: give cut-outs a --background, or take another format"
        )


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    return _SAME_ENDING.get(ending, ending)


def _video_ending(source: Path, transparent: bool) -> str:
    """A video keeps its format, except that only WebM holds alpha in degrees."""
    return ".webm" if transparent else source.suffix.lower()


def _name_outputs(
    sources: Sequence[_Source], folder: Path | None, kind: Kind, ending: str, transparent: bool
) -> list[Job]:
    def name(source: _Source, stem: str) -> Path:
        last = _video_ending(source.path, transparent) if is_video(source.path) else ending
        if folder is None:
            return source.path.parent / f"{stem}_{kind}{last}"
        return folder / source.below / f"{stem}{last}"

    def stem(source: _Source) -> str:
        return "stdin" if source.path == STANDARD else source.path.stem

    count = Counter(name(source, stem(source)) for source in sources)
    return [
        Job(source.path, place if count[place] == 1 else name(source, source.path.name))
        for source in sources
        for place in [name(source, stem(source))]
    ]


def _check_places(jobs: Sequence[Job]) -> None:
    """Refuses a picture in the place of an image, of another picture or of a folder."""
    images = {job.source.resolve(): job.source for job in jobs if job.source != STANDARD}
    claimed: dict[Path, Path] = {}
    for job in jobs:
        if job.output == STANDARD:
            continue
        place = job.output.resolve()
        if place in claimed:
            raise InputError(f"{job.output}: both {claimed[place]} and {job.source} would be written to it")
        if place in images:
            raise InputError(f"{job.output}: the picture of {job.source} would replace the image {images[place]}")
        if place.is_dir():
            raise InputError(f"{job.output}: is a folder")
        claimed[place] = job.source


def predict_files(
    predictor: "Predictor", jobs: Sequence[Job], style: Style, *, batch_size: int = 1, progress: bool = False
) -> Generator[Result]:
    """Makes the pictures that were planned. Each file appears whole or not at all.

    Args:
      predictor: the network.
      jobs: from `plan`, with the style's kind.
      style: what to make.
      batch_size: how many images the network takes at once.
      progress: whether to show a bar on stderr for the frames of each video.

    Yields:
      The results, images' before videos', each in the order of the jobs. Close the generator where it may not be run
      to its end.

    Raises:
      InputError: a folder cannot be made, the network has no attention to be shown, a video needs what is not
        installed, or `batch_size` is not positive. Nothing is written then.
    """
    images = [job for job in jobs if not is_video(job.source)]
    videos = [job for job in jobs if is_video(job.source)]
    check_kind(predictor, style)
    if videos:
        check_video(style)
    for folder in dict.fromkeys(job.output.parent for job in jobs if job.output != STANDARD):
        _make_folder(folder)
    standard_input = sys.stdin.buffer.read() if any(job.source == STANDARD for job in images) else b""

    def source(index: int) -> tuple[bytes, str]:
        path = images[index].source
        return (standard_input, "stdin") if path == STANDARD else (read_bytes(path), str(path))

    def deliver(index: int, picture: np.ndarray) -> None:
        output = images[index].output
        data = encode(picture, style.ending if output == STANDARD else _ending(output), str(output))
        if output == STANDARD:
            _write_standard_output(data)
        else:
            write_atomically(output, data)

    pictures = render_stream(predictor, len(images), source, deliver, style, batch_size=batch_size)
    for job, error in zip(images, pictures, strict=True):
        yield Result(job, None if error is None else str(error))
    for job in videos:
        try:
            predict_video(predictor, job.source, job.output, style, batch_size=batch_size, progress=progress)
        except InputError as error:
            yield Result(job, str(error))
        else:
            yield Result(job)


def check_kind(predictor: "Predictor", style: Style) -> None:
    """Raises InputError if the network lacks what the style shows, or its size is not positive."""
    checked_size(predictor.size)
    if style.kind == "attention" and not predictor.model.attention:
        raise InputError("attention: this network has none (it is that of stage 1)")


def render_stream(
    predictor: "Predictor",
    count: int,
    source: Callable[[int], tuple[bytes, str]],
    deliver: Callable[[int, np.ndarray], _Delivered],
    style: Style,
    *,
    batch_size: int,
) -> Generator[_Delivered | InputError]:
    """Makes the pictures of images, wherever these come from and those go to; a few batches are in memory at any time.

    Args:
      predictor: the network.
      count: how many images; they go by index, from 0.
      source: index → an image file's bytes, and what errors call it. Called in threads, ahead of the device, and once
        more for a very large image.
      deliver: index and picture, as of `render` → what is yielded. Called in threads, behind the device.
      style: what to make.
      batch_size: how many images the network takes at once.

    Yields:
      For each image, in order, what `deliver` returned, or the InputError that it or `source` raised or that the image
      is. Close the generator where it may not be run to its end.

    Raises:
      InputError: `batch_size` is not positive.
    """

    def read(index: int) -> SquareImage:
        data, name = source(index)
        large = count_pixels(data, name) > _LARGE
        with _large_image if large else nullcontext():
            image, alpha = read_srgb(data, name)
            # What is not kept is read again, except where nothing but its size is needed.
            beside = None if large or not style.needs_image else (image, alpha)
            return SquareImage(resize_image(image, predictor.size, predictor.size), image.shape, beside)

    def finish(index: int, answer: Any, squashed: SquareImage) -> _Delivered | InputError:
        large = style.needs_image and squashed.beside is None
        try:
            with _large_image if large else nullcontext():
                image, alpha = read_srgb(*source(index)) if large else (squashed.beside or (None, None))
                picture = render(style, answer, squashed.square, squashed.shape, image, alpha)
                del image
                return deliver(index, picture)
        except InputError as error:
            return error

    ask: Any = predictor.square_finest_maps if style.kind == "attention" else predictor.square_maps
    yield from inference_stream(ask, count, read, finish, batch_size=batch_size)


def _write_standard_output(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:  # whoever was to read it has gone
        raise InputError(f"stdout: cannot be written: {error.strerror or error}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: is a file or lies below one; pictures need a folder") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error
