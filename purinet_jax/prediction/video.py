"""Render the frames of videos with PyAV (FFmpeg): as many frames, at the same times, with sound if the format stays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from purinet_jax.data.augment import resize_image
from purinet_jax.errors import InputError
from purinet_jax.files import atomic_path, reason
from purinet_jax.prediction.rendering import Style, render
from purinet_jax.progress import progress_bar

if TYPE_CHECKING:
    from purinet_jax.prediction.predictor import Predictor

_BT709 = 1
"""FFmpeg's code of the RGB to YUV matrix of high definition; any other is taken as BT.601."""

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

    MP4 is written as H.264, WebM as VP9 (with alpha for a cut-out without background), GIF with a palette per frame.

    Args:
      predictor: the network.
      source: the video.
      output: the file to write; its ending is the format.
      style: how predictions are rendered; not "attention".
      batch_size: how many frames the network takes at once.
      progress: whether to show a bar on stderr.

    Raises:
      InputError: the video cannot be read to its end, or the output cannot be written.
    """
    import av

    try:
        with av.open(str(source)) as probe:
            first = next(probe.decode(video=0))
        with (
            atomic_path(output) as temporary,
            av.open(str(source)) as video,
            av.open(str(temporary), "w", format=output.suffix.lower()[1:]) as written,
        ):
            track = video.streams.video[0]
            stream = _add_stream(written, track, _upright(first, first).shape, style)
            kept = video.streams.audio if source.suffix.lower() == output.suffix.lower() else ()
            sounds = {sound.index: written.add_stream_from_template(sound) for sound in kept}
            decoded = _frames(video, written, sounds)
            frames = progress_bar(decoded, total=track.frames or None, shown=progress, desc="predicting", unit="frame")
            for frame, rendering in _render(frames, first, predictor, style, batch_size):
                written.mux(stream.encode(_encodable(rendering, frame, stream)))
            written.mux(stream.encode(None))
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{source}: no video can be made of it: {reason(error)}") from error
    except (StopIteration, IndexError) as error:
        raise InputError(f"{source}: no video can be made of it: not a video, or a damaged one") from error


def _add_stream(written: Any, video: Any, shape: Sequence[int], style: Style) -> Any:
    """Adds a video stream of frames [height, width, …] with the time base of the given one."""
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


def _frames(video: Any, written: Any, sounds: Mapping[int, Any]) -> Iterator[Any]:
    """The frames of a video; packets of its sound, by stream index, are copied along the way."""
    for packet in video.demux(video.streams.video[0], *(video.streams[index] for index in sounds)):
        if packet.stream.type == "video":
            yield from packet.decode()
        elif packet.dts is not None:  # the last packet of a stream is empty
            packet.stream = sounds[packet.stream.index]
            written.mux(packet)


def _upright(frame: Any, first: Any) -> np.ndarray:
    """A frame as uint8 [height, width, 3], turned as the file's metadata says, of the size of the first."""
    array = frame.to_ndarray(format="rgb24", width=first.width, height=first.height)
    return np.ascontiguousarray(np.rot90(array, round(frame.rotation / 90)))


def _render(
    frames: Iterable[Any], first: Any, predictor: "Predictor", style: Style, batch_size: int
) -> Iterator[tuple[Any, np.ndarray]]:
    """Pairs each frame with its rendering, batch by batch."""
    remaining = iter(frames)
    while batch := list(islice(remaining, batch_size)):
        images = [_upright(frame, first) for frame in batch]
        squares = [resize_image(image, predictor.size, predictor.size) for image in images]
        maps = predictor.square_maps(squares, batch_size)
        for frame, image, square, saliency in zip(batch, images, squares, maps, strict=True):
            yield frame, render(style, saliency, square, image.shape, image)


def _encodable(rendering: np.ndarray, frame: Any, stream: Any) -> Any:
    """A rendering as a frame of the new stream, at the time of the old frame."""
    import av

    if stream.pix_fmt == "pal8":
        colours = Image.fromarray(rendering).quantize(256)
        palette = np.zeros((256, 4), np.uint8)
        listed = np.array(colours.getpalette(), np.uint8).reshape(-1, 3)
        palette[: len(listed), 0], palette[: len(listed), 1:] = 255, listed  # alpha, red, green, blue
        indexed: Any = (np.asarray(colours), palette)
        made = av.VideoFrame.from_ndarray(indexed, format="pal8")
    else:
        channels = {2: "gray", 3: "rgb24"}[rendering.ndim] if rendering.shape[-1] != 4 else "rgba"
        made = av.VideoFrame.from_ndarray(rendering, format=channels)
        if stream.pix_fmt != "gray":
            matrix = "ITU709" if stream.codec_context.colorspace == _BT709 else "ITU601"
            made = made.reformat(format=stream.pix_fmt, dst_colorspace=matrix)
    made.pts, made.time_base, made.duration = frame.pts, frame.time_base, frame.duration
    return made
