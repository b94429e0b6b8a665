"""Videos: as many frames at the same times, every kind of output, odd sizes, damaged files."""

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.networks import Brightness

from purinet_jax.errors import InputError
from purinet_jax.prediction.files import plan, predict_files
from purinet_jax.prediction.rendering import Style
from purinet_jax.prediction.video import check_video, predict_video

av: Any = pytest.importorskip("av")

TIMES = (0, 3, 6, 8, 12, 15, 16, 19, 25, 30)
FORMATS = {
    ".mp4": ("libx264", "yuv420p", Fraction(1, 30), "aac"),
    ".webm": ("libvpx-vp9", "yuv420p", Fraction(1, 1000), "libopus"),
    ".gif": ("gif", "gray", Fraction(1, 25), None),
}


def drawn(frame: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A bright square that moves over a dark background."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[8:32, 4 + 3 * frame : 24 + 3 * frame] = 230
    return image


def write(path: Path, sound: bool = False, times: Sequence[int] = TIMES, height: int = 48, width: int = 64) -> Path:
    codec, pixels, base, sound_codec = FORMATS[path.suffix]
    with av.open(str(path), "w") as file:
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


def times(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        return [frame.time for frame in file.decode(video=0)]


def frames(path: Path, pixels: str = "rgb24") -> list[np.ndarray]:
    """Decoded with alpha, which FFmpeg's own VP9 decoder leaves out."""
    with av.open(str(path)) as file:
        if path.suffix != ".webm":
            return [frame.to_ndarray(format=pixels) for frame in file.decode(video=0)]
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        decoded = [frame for packet in file.demux(video=0) if packet.size for frame in decoder.decode(packet)]
        return [frame.to_ndarray(format=pixels) for frame in decoded + decoder.decode(None)]


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


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_sound_goes_along(tmp_path: Path, ending: str) -> None:
    source, output = write(tmp_path / f"a{ending}", sound=True), tmp_path / f"b{ending}"
    run(source, output, Style())
    heard = []
    for path in (source, output):
        with av.open(str(path)) as file:
            heard.append(np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1))
    np.testing.assert_array_equal(heard[0], heard[1])
    run(source, tmp_path / "c.webm" if ending == ".mp4" else tmp_path / "c.mp4", Style())


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
