"""Videos: as many frames at the same times, every kind of output, colours, orientations, odd sizes, damaged files."""

import signal
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.networks import Brightness
from PIL import Image

from purinet_jax.errors import InputError
from purinet_jax.prediction.files import plan, predict_files
from purinet_jax.prediction.rendering import Style
from purinet_jax.prediction.video import check_video, predict_video

av: Any = pytest.importorskip("av")
from av.video.reformatter import Interpolation  # noqa: E402

TIMES = (0, 3, 6, 8, 12, 15, 16, 19, 25, 30)
FORMATS = {
    ".avi": ("mpeg4", "yuv420p", Fraction(1, 30), "libmp3lame"),
    ".m4v": ("libx264", "yuv420p", Fraction(1, 30), "aac"),
    ".mkv": ("libx264", "yuv420p", Fraction(1, 1000), "flac"),
    ".mov": ("libx264", "yuv420p", Fraction(1, 30), "pcm_s16le"),
    ".mp4": ("libx264", "yuv420p", Fraction(1, 30), "aac"),
    ".webm": ("libvpx-vp9", "yuv420p", Fraction(1, 1000), "libopus"),
    ".gif": ("gif", "gray", Fraction(1, 25), None),
}
MUXERS = {".m4v": "mp4", ".mkv": "matroska"}

BT709, UNKNOWN, BT2020, GREEN = 1, 2, 9, (0, 254, 0)
# ITU-T H.273's weights of red and blue in luma, by the codes of the matrices; FFmpeg takes an unknown one for 6.
LUMA = {
    1: (0.2126, 0.0722),
    2: (0.299, 0.114),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}


class Everything(Brightness):
    """A predictor that takes everything for the object."""

    def square_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        return np.ones_like(super().square_maps(images, batch_size))


def drawn(frame: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A bright square that moves over a dark background."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[8:32, 4 + 3 * frame : 24 + 3 * frame] = 230
    return image


def write(path: Path, sound: bool = False, times: Sequence[int] = TIMES, height: int = 48, width: int = 64) -> Path:
    codec, pixels, base, sound_codec = FORMATS[path.suffix]
    with av.open(str(path), "w", format=MUXERS.get(path.suffix)) as file:
        stream = file.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = base
        voice = file.add_stream(sound_codec, rate=48000, layout="mono") if sound else None
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(drawn(index % 10, height, width), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time if base.denominator < 100 else time * 33, base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        for index in range(20 if sound else 0):
            tone = np.sin(np.arange(1024) / 9)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 1024 * index, Fraction(1, 48000)
            file.mux(voice.encode(frame))
        if sound:
            file.mux(voice.encode(None))
    return path


def write_tagged(
    path: Path,
    image: np.ndarray,
    *,
    codec: str = "libx264",
    pixels: str = "yuv444p",
    tags: tuple[int, int, int, int] = (BT709, 1, BT709, BT709),
    aspect_ratio: Fraction | None = None,
    rotation: tuple[int, bool] = (0, False),
) -> Path:
    """Two lossless frames of uint8 [height, width, RGB], of the given matrix, range, primaries and transfer."""
    base = Fraction(1, 1000) if path.suffix in (".mkv", ".webm") else Fraction(1, 30)
    with av.open(str(path), "w", format=MUXERS.get(path.suffix)) as file:
        stream = file.add_stream(codec, rate=30, options={"qp": "0", "crf": "0", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], pixels
        context = stream.codec_context
        context.time_base = base
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        if aspect_ratio:
            context.sample_aspect_ratio = aspect_ratio
        if rotation != (0, False):
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for index in range(2):
            if pixels == "bgr24":
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[..., ::-1]), format="bgr24")
            else:
                planes = to_yuv(image, tags[0], full=tags[1] == 2)
                frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8), format="yuv444p")
                frame.colorspace = tags[0]
                frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = index * 33 if base.denominator > 30 else index, base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def to_yuv(image: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """Planes [3, height, width] of an image, as ITU-T H.273 defines them."""
    red, green, blue = np.moveaxis(image / 255, -1, 0)
    of_red, of_blue = LUMA.get(matrix, LUMA[6])
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = [(blue - luma) / 2 / (1 - of_blue), (red - luma) / 2 / (1 - of_red)]
    if full:
        return np.rint([255 * luma, *(128 + 255 * each for each in chroma)])
    return np.rint([16 + 219 * luma, *(128 + 224 * each for each in chroma)])


def tags(path: Path) -> tuple[int, int, int, int]:
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        return frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc


def aspect_ratio(path: Path) -> Fraction | None:
    with av.open(str(path)) as file:
        ratio: Fraction | None = file.streams.video[0].sample_aspect_ratio
        return ratio


def flat(colour: Sequence[int] = GREEN, height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def cut_out(source: Path, output: Path) -> Path:
    """Writes the video's own frames: all is object."""
    network: Any = Everything()
    predict_video(network, source, output, Style("cutout", background=(255, 0, 0), refine=False))
    return output


def times(path: Path) -> list[float]:
    """In AVI, frames have slots, from which FFmpeg guesses the times of H.264 too late by one."""
    with av.open(str(path)) as file:
        if path.suffix == ".avi":
            return [float(packet.dts * packet.time_base) for packet in file.demux(video=0) if packet.size]
        return [frame.time for frame in file.decode(video=0)]


def frames(path: Path, pixels: str = "rgb24") -> list[np.ndarray]:
    """Decoded without FFmpeg's rounding down, and with alpha, which FFmpeg's own VP9 decoder leaves out."""
    with av.open(str(path)) as file:
        decoded = list(file.decode(video=0))
    if path.suffix == ".webm" and pixels == "rgba":
        with av.open(str(path)) as file:
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            decoded = [frame for packet in file.demux(video=0) if packet.size for frame in decoder.decode(packet)]
            decoded += decoder.decode(None)
    rounding = Interpolation.POINT | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    return [frame.to_ndarray(format=pixels, interpolation=rounding) for frame in decoded]


def run(source: Path, output: Path, style: Style, **options: Any) -> None:
    network: Any = Brightness()
    predict_video(network, source, output, style, **options)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    "style", [Style(), Style("mask"), Style("overlay"), Style("cutout", background=(0, 0, 255))], ids=lambda s: s.kind
)
def test_frames_and_their_times_stay(tmp_path: Path, ending: str, style: Style) -> None:
    source, output = write(tmp_path / f"a{ending}"), tmp_path / f"b{ending}"
    run(source, output, style, batch_size=4)
    assert len(times(source)) == len(TIMES)
    np.testing.assert_allclose(times(output), times(source), atol=1e-6)
    for index, found in enumerate(frames(output)):
        # Well inside the square and well outside of it.
        inside, outside = found[18:24, 12 + 3 * index : 16 + 3 * index], found[40:, :]
        if style.kind == "mask":
            assert inside.min() > 240
            assert outside.max() < 15
        elif style.kind == "overlay":
            np.testing.assert_allclose(inside.mean((0, 1)), (241, 144, 162), atol=16)
        elif style.kind == "cutout":
            np.testing.assert_allclose(inside.mean((0, 1)), (230, 230, 230), atol=12)
            np.testing.assert_allclose(outside.mean((0, 1)), (0, 0, 255), atol=12)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{ending}", f"b{ending}"]


@pytest.mark.parametrize("ending", FORMATS)
def test_cutouts_have_alpha(tmp_path: Path, ending: str) -> None:
    source = write(tmp_path / f"a{ending}")
    (job,) = plan([source], kind="cutout", transparent=True)
    network: Any = Brightness()
    assert [result.error for result in predict_files(network, [job], Style("cutout"))] == [None]
    assert job.output.name == "a_cutout.webm"
    np.testing.assert_allclose(times(job.output), times(source), atol=6e-4)  # WebM counts milliseconds
    found = frames(job.output, "rgba")
    assert len(found) == len(TIMES)
    assert found[0][18:24, 12:16].min() > 200
    assert found[0][40:, :, 3].max() < 15


@pytest.mark.parametrize("ending", [ending for ending in FORMATS if ending != ".gif"])
def test_sound_goes_along(tmp_path: Path, ending: str) -> None:
    source, output = write(tmp_path / f"a{ending}", sound=True), tmp_path / f"b{ending}"
    run(source, output, Style())
    heard = []
    for path in (source, output):
        with av.open(str(path)) as file:
            heard.append(np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1))
    np.testing.assert_array_equal(heard[0], heard[1])
    run(source, tmp_path / ("c.webm" if ending != ".webm" else "c.mp4"), Style())


def test_a_sound_that_ffmpeg_does_not_know_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / "a.mov", sound=True)
    source.write_bytes(source.read_bytes().replace(b"mp4a", b"apac").replace(b"sowt", b"apac"))
    run(source, tmp_path / "b.mov", Style())
    assert len(frames(tmp_path / "b.mov")) == len(TIMES)
    assert "a.mov: a sound is left out: " in caplog.text


def test_a_video_of_four_columns(tmp_path: Path) -> None:
    run(write(tmp_path / "a.mov", width=4, height=16), tmp_path / "b.mov", Style("mask"))
    assert frames(tmp_path / "b.mov")[0].shape == (16, 4, 3)


def test_odd_sides(tmp_path: Path) -> None:
    source = write(tmp_path / "a.webm", height=47, width=63)
    for ending in (".webm", ".mp4"):
        run(source, tmp_path / f"b{ending}", Style("mask"))
        found = frames(tmp_path / f"b{ending}")
        assert len(found) == len(TIMES)
        assert found[0].shape == (47, 63, 3)


def test_one_batch_shape_and_few_frames_at_a_time(tmp_path: Path) -> None:
    network: Any = Brightness()
    source = write(tmp_path / "a.gif", times=range(0, 100, 4))
    predict_video(network, source, tmp_path / "b.gif", Style(), batch_size=8)
    assert network.batches == [(8, 8), (8, 8), (8, 8), (1, 8)]


def test_bad_videos_are_named_and_the_others_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "a.mp4")
    data = good.read_bytes()
    bad = {
        "empty.mp4": b"",
        "text.webm": b"no video",
        "short.mp4": data[: len(data) // 2],
        "noise.gif": b"GIF89a" + data[:99],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    network: Any = Brightness()
    jobs = plan([tmp_path / name for name in bad] + [good], tmp_path / "out")
    results = list(predict_files(network, jobs, Style()))
    for result in results[:-1]:
        assert result.error is not None
        assert result.error.startswith(f"{result.job.source}: no video can be made of it: ")
        assert "\n" not in result.error
    assert results[-1].error is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mp4"]


def test_panels_of_videos_are_refused() -> None:
    with pytest.raises(InputError, match="attention: panels are made of images"):
        check_video(Style("attention"))


def test_without_pyav_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    network: Any = Brightness()
    with pytest.raises(InputError, match=r"needs? PyAV: pip install 'purinet_jax\[video\]'"):
        list(predict_files(network, plan([source]), Style()))


@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("colour_range", [1, 2])
def test_matrices_are_converted_and_kept(tmp_path: Path, matrix: int, colour_range: int) -> None:
    given = matrix, colour_range, BT2020, BT709
    for colour in (GREEN, (200, 60, 90)):
        source = write_tagged(tmp_path / "a.mp4", flat(colour), pixels="yuv420p", tags=given)
        output = cut_out(source, tmp_path / "b.mp4")
        assert tags(output) == given
        expected = to_yuv(flat(colour), matrix, full=colour_range == 2)[:, 0, 0]
        with av.open(str(output)) as file:
            planes = next(file.decode(video=0)).to_ndarray().reshape(-1)
        for plane, value in zip(np.split(planes, [256, 320]), expected, strict=True):
            np.testing.assert_allclose(plane, value, atol=1)
        # A step of luma and one of chroma are up to 3.
        np.testing.assert_allclose(frames(output)[0].astype(int), flat(colour), atol=2 if colour == GREEN else 3)


@pytest.mark.parametrize(("matrix", "name"), [(8, "ycgco"), (10, "bt2020c"), (14, "ictcp")])
def test_other_matrices_are_refused_by_name(tmp_path: Path, matrix: int, name: str) -> None:
    source = write_tagged(tmp_path / "a.mp4", flat(), tags=(matrix, 1, BT2020, BT2020))
    with pytest.raises(InputError, match=rf"a\.mp4: .*the colour matrix {name} is not supported"):
        cut_out(source, tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize("ending", [".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"])
def test_stream_properties_carry_over(tmp_path: Path, ending: str) -> None:
    """Also transfers of high dynamic range (16 is PQ); PyAV cannot write the aspect ratio of WebM."""
    ratio, given = Fraction(16, 11), (BT2020, 1, BT2020, 16)
    source = write_tagged(tmp_path / "a.mp4", flat(width=32), tags=given, aspect_ratio=ratio)
    output = cut_out(source, tmp_path / f"b{ending}")
    assert tags(output) == given
    assert aspect_ratio(output) == (1 if ending == ".webm" else ratio)
    assert frames(output)[0].shape == (16, 47 if ending == ".webm" else 32, 3)


def test_ten_bits_and_hybrid_log_gamma(tmp_path: Path) -> None:
    source = write_tagged(tmp_path / "a.mkv", flat(), pixels="yuv420p10le", tags=(BT2020, 1, BT2020, 18))
    output = cut_out(source, tmp_path / "b.mkv")
    assert tags(output) == (BT2020, 1, BT2020, 18)
    np.testing.assert_allclose(frames(output)[1].astype(int), flat(), atol=2)


def test_rgb_becomes_bt709(tmp_path: Path) -> None:
    source = write_tagged(tmp_path / "a.mp4", flat(), codec="libx264rgb", pixels="bgr24", tags=(0, 2, UNKNOWN, UNKNOWN))
    assert tags(source)[0] == 0
    for ending in (".mp4", ".webm"):
        output = cut_out(source, tmp_path / f"b{ending}")
        assert tags(output) == (BT709, 1, UNKNOWN, UNKNOWN)
        np.testing.assert_allclose(frames(output)[1].astype(int), flat(), atol=3)


@pytest.mark.parametrize("ending", [".mkv", ".mov"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_turned_upright(tmp_path: Path, ending: str, degrees: int) -> None:
    image = flat((20, 20, 20), height=32, width=48)
    image[:16, :16], image[:16, 32:] = 230, 128
    for mirrored in (False, True) if ending == ".mov" else (False,):  # Matroska has no mirrored videos
        source = write_tagged(tmp_path / f"a{ending}", image, aspect_ratio=Fraction(2, 1), rotation=(degrees, mirrored))
        output = cut_out(source, tmp_path / f"b{ending}")
        expected = np.rot90(image, degrees // 90)
        expected = expected[:, ::-1] if mirrored else expected
        with av.open(str(output)) as file:
            (first, _) = file.decode(video=0)
            assert "DISPLAYMATRIX" not in first.side_data
            np.testing.assert_allclose(first.to_ndarray(format="rgb24").astype(int), expected, atol=12)
        assert aspect_ratio(output) == (Fraction(1, 2) if degrees % 180 else 2)


@pytest.mark.parametrize(("codec", "options"), [("libx264", {}), ("mpeg4", {"bf": "2"})])
def test_frames_of_avi_that_are_stored_out_of_order(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    with av.open(str(tmp_path / "a.avi"), "w") as file:
        stream = file.add_stream(codec, rate=30, options=options)
        stream.width, stream.height = 64, 48
        for index in range(10):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(drawn(index), format="rgb24")))
        file.mux(stream.encode(None))
    output = cut_out(tmp_path / "a.avi", tmp_path / "b.avi")
    np.testing.assert_allclose(times(output), np.arange(10) / 30, atol=1e-6)
    for index, frame in enumerate(frames(output)):
        assert frame[18:24, 12 + 3 * index : 16 + 3 * index].min() > 200


@pytest.mark.parametrize("name", ["missing/b.mp4", "b" * 260 + ".mp4"])
def test_outputs_that_cannot_be_written_cost_no_prediction(tmp_path: Path, name: str) -> None:
    network: Any = Brightness()
    with pytest.raises(InputError, match=r"b\.mp4: cannot be written: (No such file|File name too long)") as caught:
        predict_video(network, write(tmp_path / "a.mp4"), tmp_path / name, Style())
    assert "\n" not in str(caught.value)
    assert network.batches == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("ending", FORMATS)
def test_an_interrupt_leaves_no_file(tmp_path: Path, ending: str) -> None:
    class Interrupted(Brightness):
        def square_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
            if len(self.batches) == 5:
                signal.raise_signal(signal.SIGINT)
            return super().square_maps(images, batch_size)

    network: Any = Interrupted()
    source = write(tmp_path / f"a{ending}")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist has another one
    try:
        with pytest.raises(KeyboardInterrupt):
            predict_video(network, source, tmp_path / f"b{ending}", Style())
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_videos_that_ffmpeg_does_not_support_are_not_called_damaged(tmp_path: Path) -> None:
    encrypted, sound = tmp_path / "encrypted.mp4", tmp_path / "sound.mp4"
    encrypted.write_bytes(write(tmp_path / "a.mp4").read_bytes().replace(b"avc1", b"encv"))
    with av.open(str(sound), "w") as file:
        stream = file.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        file.mux(stream.encode(frame) + stream.encode(None))
    for source, expected in (
        (encrypted, "FFmpeg has no decoder for its video track"),
        (sound, "it has no video track"),
    ):
        with pytest.raises(InputError, match=f"no video can be made of it: {expected}"):
            run(source, tmp_path / "b.mp4", Style())


@pytest.mark.parametrize("ending", [".mov", ".gif", ".webm"])
def test_colours_under_alpha_0_are_neither_found_nor_shown(tmp_path: Path, ending: str) -> None:
    image = np.dstack([drawn(0), np.full((48, 64), 255, np.uint8)])
    image[:, :32] = (255, 0, 0, 0)
    source = tmp_path / f"input{ending}"
    if ending == ".gif":
        flipped = Image.fromarray(image[::-1])
        Image.fromarray(image).save(source, save_all=True, append_images=[flipped])
    else:
        with av.open(str(source), "w") as file:
            codec, pixels = ("png", "rgba") if ending == ".mov" else ("libvpx-vp9", "yuva420p")
            stream = file.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgba")))
            file.mux(stream.encode(None))
    seen = []

    class Recorder(Everything):
        def square_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
            seen.extend(images)
            return super().square_maps(images, batch_size)

    for kind in ("map", "overlay"):
        predict_video(Recorder(), source, tmp_path / f"{kind}{ending}", Style(kind))
        for frame in frames(tmp_path / f"{kind}{ending}"):
            red, green = frame[8:40, 4:24, 0].astype(int), frame[8:40, 4:24, 1]
            assert np.abs(red - green).max() < 24
            assert kind == "overlay" or (red.max() < 8 and frame[8:40, 40:60].min() > 247)
    assert all(np.ptp(square, axis=2).max() == 0 for square in seen)
