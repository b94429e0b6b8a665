"""Videos in, videos out, frame by frame: as many frames, at the same times, however long the video is. PyAV (FFmpeg)
reads and writes; the sound goes along where the format stays the same.
"""

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from purinet_jax.data.augment import resize_image
from purinet_jax.errors import InputError
from purinet_jax.prediction.rendering import Style, render
from purinet_jax.prediction.stream import show_progress

if TYPE_CHECKING:
    from purinet_jax.prediction.predictor import Predictor

_BT709 = 1
"""FFmpeg's number of the matrix between RGB and YUV that high definition has; any other is taken as BT.601."""

# By format: encoder, pixels and settings; quality that is hard to tell from the original, at a speed for CPUs.
_ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp4": ("libx264", "yuv420p", {"crf": "18"}),
    "webm": (
        "libvpx-vp9",
        "yuv420p",
        {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1", "auto-alt-ref": "0"},
    ),
    "gif": ("gif", "pal8", {}),
}


def check_video(style: Style) -> None:
    """Whether videos can be made. Raises InputError if PyAV is missing or the style shows single images."""
    if style.kind == "attention":
        raise InputError("attention: panels are made of images, not of videos")
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError("videos need PyAV: pip install 'purinet_jax[video]'") from error


def predict_video(
    predictor: "Predictor",
    source: Path,
    output: Path,
    style: Style,
    *,
    batch_size: int = 1,
    progress: bool = False,
) -> None:
    """Makes the picture of each frame of a video, one video of them.

    MP4 is written as H.264, WebM as VP9 (with alpha for a cut-out without background), GIF with a palette per frame.
    The file appears whole or not at all.

    Args:
      predictor: the network.
      source: the video.
      output: the file to write; its ending is the format.
      style: what is made of each frame; not "attention".
      batch_size: how many frames the network takes at once.
      progress: whether to show a bar on stderr.

    Raises:
      InputError: the video cannot be read to its end, or the output cannot be written.
    """
    import av

    temporary = output.parent / f".{secrets.token_hex(8)}.part"
    try:
        with av.open(str(source)) as probe:
            first = next(probe.decode(video=0))
        with (
            av.open(str(source)) as video,
            av.open(str(temporary), "w", format=output.suffix.lower()[1:]) as written,
        ):
            stream = _picture_stream(written, video.streams.video[0], _upright(first, first).shape, style)
            sounds = _sound_streams(written, video) if source.suffix.lower() == output.suffix.lower() else {}
            frames = show_progress(_frames(video, written, sounds), video.streams.video[0].frames or None, progress)
            for frame, picture in _pictures(frames, first, predictor, style, batch_size):
                written.mux(stream.encode(_made_frame(picture, frame, stream)))
            written.mux(stream.encode(None))
        os.replace(temporary, output)
    except (av.FFmpegError, OSError, StopIteration, IndexError) as error:
        reason = getattr(error, "strerror", None) or "not a video, or a damaged one"
        raise InputError(f"{source}: no video can be made of it: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _picture_stream(written: Any, video: Any, shape: Sequence[int], style: Style) -> Any:
    """The stream of pictures [height, width, …] in the new file, with the time base of the old one."""
    height, width = shape[:2]
    codec, pixels, options = _ENCODERS[written.format.name]
    if pixels == "yuv420p" and codec == "libx264" and (height % 2 or width % 2):
        pixels = "yuv444p"  # H.264 halves only even sides
    if codec == "libvpx-vp9" and style.kind == "cutout" and style.background is None:
        pixels = "yuva420p"
    if codec == "gif" and style.kind in ("map", "mask"):
        pixels = "gray"
    stream = written.add_stream(codec, rate=video.average_rate or 25, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    stream.codec_context.time_base = video.time_base
    if codec != "gif":
        stream.codec_context.colorspace = video.codec_context.colorspace
    return stream


def _sound_streams(written: Any, video: Any) -> dict[int, Any]:
    """A stream in the new file for each one of sound in the old, by its number there."""
    return {sound.index: written.add_stream_from_template(sound) for sound in video.streams.audio}


def _frames(video: Any, written: Any, sounds: Mapping[int, Any]) -> Iterator[Any]:
    """The frames of a video; its sound is copied as it comes by."""
    for packet in video.demux(video.streams.video[0], *(video.streams[index] for index in sounds)):
        if packet.stream.type == "video":
            yield from packet.decode()
        elif packet.dts is not None:  # the last packet of a stream is empty
            packet.stream = sounds[packet.stream.index]
            written.mux(packet)


def _upright(frame: Any, first: Any) -> np.ndarray:
    """A frame as uint8 [height, width, 3], turned as a telephone's note says, of the size of the first."""
    array = frame.to_ndarray(format="rgb24", width=first.width, height=first.height)
    return np.ascontiguousarray(np.rot90(array, round(frame.rotation / 90)))


def _pictures(
    frames: Iterable[Any], first: Any, predictor: "Predictor", style: Style, batch_size: int
) -> Iterator[tuple[Any, np.ndarray]]:
    """Each frame with its picture; a batch of frames is in memory."""

    def finish(batch: Sequence[Any]) -> Iterator[tuple[Any, np.ndarray]]:
        images = [_upright(frame, first) for frame in batch]
        squares = [resize_image(image, predictor.size, predictor.size) for image in images]
        answers = predictor.square_maps(squares, batch_size)
        for frame, image, square, answer in zip(batch, images, squares, answers, strict=True):
            yield frame, render(style, answer, square, image.shape, image)

    batch: list[Any] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == batch_size:
            yield from finish(batch)
            batch = []
    if batch:
        yield from finish(batch)


def _made_frame(picture: np.ndarray, frame: Any, stream: Any) -> Any:
    """A picture as a frame of the new stream, at the time of the old frame."""
    import av

    if stream.pix_fmt == "pal8":
        colours = Image.fromarray(picture).quantize(256)
        palette = np.zeros((256, 4), np.uint8)
        listed = np.array(colours.getpalette(), np.uint8).reshape(-1, 3)
        palette[: len(listed), 0], palette[: len(listed), 1:] = 255, listed  # alpha, red, green, blue
        indexed: Any = (np.asarray(colours), palette)
        made = av.VideoFrame.from_ndarray(indexed, format="pal8")
    else:
        channels = {2: "gray", 3: "rgb24"}[picture.ndim] if picture.shape[-1] != 4 else "rgba"
        made = av.VideoFrame.from_ndarray(picture, format=channels)
        if stream.pix_fmt != "gray":
            matrix = "ITU709" if stream.codec_context.colorspace == _BT709 else "ITU601"
            made = made.reformat(format=stream.pix_fmt, dst_colorspace=matrix)
    made.pts, made.time_base, made.duration = frame.pts, frame.time_base, frame.duration
    return made
