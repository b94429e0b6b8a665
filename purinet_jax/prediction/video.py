"""Render the frames of videos with PyAV (FFmpeg): as many frames, at the same times, with sound if the format stays."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from purinet_jax.data.augment import resize_image
from purinet_jax.errors import InputError
from purinet_jax.files import atomic_path, one_line, reason
from purinet_jax.prediction.cutouts import fit_background, visible
from purinet_jax.prediction.rendering import Style, render
from purinet_jax.prediction.smoothing import Smoother
from purinet_jax.progress import progress_bar

if TYPE_CHECKING:
    from purinet_jax.prediction.predictor import Predictor

logger = logging.getLogger(__name__)

# By ending: FFmpeg's format and encoder.
_FORMATS = {
    ".avi": ("avi", "libx264"),
    ".gif": ("gif", "gif"),
    ".m4v": ("mp4", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mp4": ("mp4", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}

# By encoder: pixels and settings; quality that is hard to tell from the original, at a speed for CPUs.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "libx264": ("yuv420p", {"crf": "18"}),
    "libvpx-vp9": (
        "yuv420p",
        {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1", "auto-alt-ref": "0"},
    ),
    "gif": ("pal8", {}),
}

VIDEO_ENDINGS = tuple(_FORMATS)
"""Endings, in lower case, by which a video is recognised."""

# FFmpeg's names of the RGB to YUV matrices, which ITU-T H.273 numbers.
_MATRICES = (
    *("gbr", "bt709", "unknown", "reserved", "fcc", "bt470bg", "smpte170m", "smpte240m", "ycgco", "bt2020nc"),
    *("bt2020c", "smpte2085", "chroma-derived-nc", "chroma-derived-c", "ictcp", "ipt-c2", "ycgco-re", "ycgco-ro"),
)
_BT709, _UNKNOWN, _FCC = 1, 2, 4
_CONVERTIBLE = (1, 2, 4, 5, 6, 7, 9)  # by FFmpeg's swscale, which takes an unknown matrix for smpte170m
_LIMITED_RANGE = 1

_UNREADABLE = "no video can be made of it"


def check_video(style: Style) -> None:
    """Raises InputError if PyAV is missing or the style is for single images."""
    if style.kind == "attention":
        raise InputError("attention: panels are made of images, not of videos")
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError("videos need PyAV: pip install 'purinet_jax[video]'") from error


def predict_video(
    predictor: "Predictor", source: Path, output: Path, style: Style, *, batch_size: int = 1, progress: bool = False
) -> None:
    """Renders each frame of a video into a new video, which is written atomically.

    MP4, M4V, QuickTime, Matroska and AVI are written as H.264, WebM as VP9 (with alpha for a cut-out without
    background), GIF with a palette per frame. Frames are turned upright. Matrix, range, primaries and transfer of the
    colours and the sample aspect ratio stay; values are 8-bit, and PQ and HLG are not tone-mapped. Alpha of frames is
    applied as that of images.

    Args:
      predictor: the network.
      source: the video.
      output: the file to write; its ending is the format.
      style: how predictions are rendered; not "attention".
      batch_size: how many frames the network takes at once.
      progress: whether to show a bar on stderr.

    Raises:
      InputError: the video cannot be read to its end, its colours cannot be converted, or the output cannot be written;
        if its folder or name is why, no frame is predicted.
    """
    import av

    first = _first_frame(source)
    with _errors_of(output, "cannot be written"), atomic_path(output) as temporary:
        with suppress(FileNotFoundError):
            output.lstat()  # fails if the name is too long
        temporary.touch()  # fails if the folder is not writable; FFmpeg opens the file after the first frame
        with (
            av.open(str(source)) as video,
            av.open(str(temporary), "w", format=_FORMATS[output.suffix.lower()][0]) as written,
        ):
            track = video.streams.video[0]
            stream = _add_stream(written, track, first, output, style)
            kept = video.streams.audio if source.suffix.lower() == output.suffix.lower() else ()
            sounds = _add_sounds(written, kept, source)
            decoded = _frames(video, written, sounds, source, output)
            frames = progress_bar(decoded, total=track.frames or None, shown=progress, desc="predicting", unit="frame")
            for frame, rendering in _render(frames, first, source, predictor, style, batch_size):
                written.mux(stream.encode(_encodable(rendering, frame, stream)))
            written.mux(stream.encode(None))


@contextmanager
def _errors_of(path: Path, failure: str) -> Iterator[None]:
    """Raises the errors of FFmpeg and of the system as `InputError`s that name a file."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path}: {failure}: {reason(error)}") from error


def _first_frame(source: Path) -> Any:
    import av

    with _errors_of(source, _UNREADABLE), av.open(str(source)) as video:
        tracks = video.streams.video
        if not tracks:
            raise InputError(f"{source}: {_UNREADABLE}: it has no video track")
        if tracks[0].codec_context is None:
            raise InputError(f"{source}: {_UNREADABLE}: FFmpeg has no decoder for its video track")
        decoder = _decoder(tracks[0])
        first = next((frame for packet in video.demux(tracks[0]) for frame in decoder.decode(packet)), None)
        if first is None:
            raise InputError(f"{source}: {_UNREADABLE}: it has no frames")
        return first


def _add_sounds(written: Any, sounds: Iterable[Any], source: Path) -> dict[int, Any]:
    """Adds streams for a video's sounds, by their indices; those that cannot be copied are left out, and logged."""
    added = {}
    for sound in sounds:
        try:
            added[sound.index] = written.add_stream_from_template(sound)
        except ValueError as error:  # FFmpeg does not know the sound, or its format does not hold it
            logger.warning("%s: a sound is left out: %s", source, one_line(error))
    return added


def _add_stream(written: Any, track: Any, first: Any, output: Path, style: Style) -> Any:
    """Adds a video stream with the size, times and colours of a video's track, by its first frame."""
    codec = _FORMATS[output.suffix.lower()][1]
    pixels, options = _ENCODERS[codec]
    transposed = _orientation(first)[0]
    height, width = (first.width, first.height) if transposed else (first.height, first.width)
    aspect_ratio = track.sample_aspect_ratio or 1
    aspect_ratio = 1 / aspect_ratio if transposed else aspect_ratio
    if codec == "libvpx-vp9":  # PyAV cannot give WebM an aspect ratio, so that its samples become square
        width, aspect_ratio = round(width * aspect_ratio), 1
    if codec == "libx264" and (height % 2 or width % 2):
        pixels = "yuv444p"  # H.264 halves only even sides
    if codec == "libvpx-vp9" and style.transparent:
        pixels = "yuva420p"
    if codec == "gif" and style.kind in ("map", "mask"):
        pixels = "gray"
    if written.format.name == "avi":
        options = {**options, "bf": "0"}  # AVI has no times to reorder frames by
    stream = written.add_stream(codec, rate=track.average_rate or 25, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    context = stream.codec_context
    context.time_base = track.time_base
    if track.sample_aspect_ratio:
        context.sample_aspect_ratio = aspect_ratio
    if codec != "gif":
        in_rgb = _is_rgb(first)
        matrix = _BT709 if in_rgb else _matrix(first)
        context.colorspace = _BT709 if matrix == _FCC and codec == "libvpx-vp9" else matrix  # VP9 has no code for FCC
        context.color_range = _LIMITED_RANGE if in_rgb else first.color_range
        context.color_primaries, context.color_trc = (
            _UNKNOWN if code in (0, 3) else code  # 0 and 3 are reserved
            for code in (first.color_primaries, first.color_trc)
        )
    return stream


def _frames(video: Any, written: Any, sounds: Mapping[int, Any], source: Path, output: Path) -> Iterator[Any]:
    """The frames of a video; packets of its sound, by stream index, are copied along the way."""
    in_avi = video.format.name == "avi"
    decoder = _decoder(video.streams.video[0])
    slots: deque[int] = deque()  # AVI has a slot per packet; FFmpeg can guess the frames' times from them out of order
    with _errors_of(source, _UNREADABLE):
        for packet in video.demux(video.streams.video[0], *(video.streams[index] for index in sounds)):
            if packet.stream.type == "video":
                if in_avi and packet.size:
                    slots.append(packet.dts)
                for frame in decoder.decode(packet):
                    frame.pts = slots.popleft() if slots else frame.pts
                    yield frame
            elif packet.dts is not None:  # the last packet of a stream is empty
                packet.stream = sounds[packet.stream.index]
                with _errors_of(output, "cannot be written"):
                    written.mux(packet)


def _decoder(track: Any) -> Any:
    """The decoder of a video's track: of VP8 and VP9 with alpha libvpx's, since FFmpeg's own leave alpha out."""
    import av

    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(track.codec_context.name)
    if name is None or track.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return track.codec_context
    return av.CodecContext.create(name, "r")


def _is_rgb(frame: Any) -> bool:
    return frame.format.is_rgb or frame.format.has_palette


def _matrix(frame: Any) -> int:
    """The code of the matrix to convert a frame with: `_UNKNOWN` if it is RGB or its code is reserved."""
    return _UNKNOWN if _is_rgb(frame) or frame.colorspace in (0, 3) else frame.colorspace


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How to turn a frame upright: whether to transpose it, and then to flip it vertically and horizontally."""
    if "DISPLAYMATRIX" not in frame.side_data:
        return False, False, False
    # A pixel at (x, y) is shown at (a x + c y, b x + d y); the matrix is a, b, u, c, d, v, x, y, w, little-endian.
    a, b, _, c, d = (int(value) for value in np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)[:5])
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)


def _upright(frame: Any, first: Any, source: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """A frame as uint8 [height, width, 3] and its alpha uint8 [height, width], None if it is opaque.

    Both are turned as the file's metadata says, and of the size of the first frame.

    Raises:
      InputError: FFmpeg cannot convert the frame's matrix.
    """
    import av
    from av.video.reformatter import Interpolation

    frame.colorspace = matrix = _matrix(frame)
    if matrix not in _CONVERTIBLE:
        name = _MATRICES[matrix] if matrix < len(_MATRICES) else matrix
        raise InputError(f"{source}: {_UNREADABLE}: the colour matrix {name} is not supported; convert it to bt709")
    size = first.width, first.height
    even = size[0] % 2 == size[1] % 2 == 0
    if frame.format.name in ("yuv420p", "yuvj420p") and even and (frame.width, frame.height) == size:
        # FFmpeg repeats halved chroma and rounds down, by up to 3; it rounds exactly if told to, but then interpolates
        # chroma, unless the frame is a copy without its position.
        copy = av.VideoFrame.from_ndarray(frame.to_ndarray(), format=frame.format.name)
        copy.colorspace, copy.color_range = matrix, frame.color_range
        exact = Interpolation.POINT | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        array = copy.to_ndarray(format="rgb24", interpolation=exact)
    else:
        array = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        opacity = frame.to_ndarray(format="rgba", width=size[0], height=size[1])[..., 3]
        if opacity.min() < 255:
            array = np.dstack([array, opacity])
    transposed, *flips = _orientation(frame)
    if transposed:
        array = array.transpose(1, 0, 2)
    upright = np.flip(array, [axis for axis in (0, 1) if flips[axis]])
    alpha = np.ascontiguousarray(upright[..., 3]) if upright.shape[2] == 4 else None
    return np.ascontiguousarray(upright[..., :3]), alpha


def _render(
    frames: Iterable[Any], first: Any, source: Path, predictor: "Predictor", style: Style, batch_size: int
) -> Iterator[tuple[Any, np.ndarray]]:
    """Pairs each frame with its rendering, batch by batch."""
    smoother = Smoother() if style.smooth else None
    remaining = iter(frames)
    while batch := list(islice(remaining, batch_size)):
        images = [_upright(frame, first, source) for frame in batch]
        if isinstance(style.background, np.ndarray):  # once, because frames have one size
            style = replace(style, background=fit_background(style.background, *images[0][0].shape[:2]))
        visibles = [visible(*image) for image in images]
        squares = [resize_image(shown, predictor.size, predictor.size) for shown in visibles]
        maps = predictor.square_maps(squares, batch_size)
        for frame, (image, alpha), shown, square, saliency in zip(batch, images, visibles, squares, maps, strict=True):
            saliency = saliency if smoother is None else smoother(square, saliency)
            yield frame, render(style, saliency, square, image.shape, image, alpha, shown)


def _encodable(rendering: np.ndarray, frame: Any, stream: Any) -> Any:
    """A rendering as a frame of the new stream, at the time of the old frame."""
    import av
    from av.video.reformatter import Interpolation

    if stream.pix_fmt == "pal8":
        colours = Image.fromarray(rendering).quantize(256)
        palette = np.zeros((256, 4), np.uint8)
        listed = np.array(colours.getpalette(), np.uint8).reshape(-1, 3)
        palette[: len(listed), 0], palette[: len(listed), 1:] = 255, listed  # alpha, red, green, blue
        indexed: Any = (np.asarray(colours), palette)
        made = av.VideoFrame.from_ndarray(indexed, format="pal8")
    else:
        channels = "gray" if rendering.ndim == 2 else {3: "rgb24", 4: "rgba"}[rendering.shape[2]]
        made = av.VideoFrame.from_ndarray(rendering, format=channels)
        if stream.pix_fmt != "gray":
            context = stream.codec_context
            made = made.reformat(
                width=stream.width,
                height=stream.height,
                format=stream.pix_fmt,
                dst_colorspace=context.colorspace,
                dst_color_range=context.color_range,
                interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
            )
    made.pts, made.time_base, made.duration = frame.pts, frame.time_base, frame.duration
    return made
