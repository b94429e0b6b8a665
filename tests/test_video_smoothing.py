"""Smoothing of videos' maps: steadier, no further from the truth, reset at cuts, one average per video."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.networks import Brightness
from helpers.project_scripts import import_script

from purinet_jax.prediction.backgrounds import Blur
from purinet_jax.prediction.rendering import Style
from purinet_jax.prediction.smoothing import Smoother

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return import_script("smoothing", "benchmarks")


def smoothed(clip: Sequence[Any]) -> list[np.ndarray]:
    smoother = Smoother()
    return [smoother(frame.image, frame.saliency) for frame in clip]


@pytest.mark.parametrize("name", ["still", "fast"])
def test_maps_are_steadier_and_nearer_to_the_truth(benchmark: ModuleType, name: str) -> None:
    clip = benchmark.make_clip(16, 128, *benchmark.SPEEDS[name])
    maps = smoothed(clip)
    for saliency in maps:
        assert saliency.dtype == np.float32
        assert saliency.min() >= 0
        assert saliency.max() <= 1
    before, after = benchmark.measures(clip, [frame.saliency for frame in clip]), benchmark.measures(clip, maps)
    assert after["flicker"] < 0.5 * before["flicker"]
    assert after["error"] < 0.9 * before["error"]
    assert after["mask_error"] < before["mask_error"]


def test_edges_do_not_lag(benchmark: ModuleType) -> None:
    """Where maps are right, they stay so while the object moves; a plain average is seven times as far off."""
    clip = [frame._replace(saliency=frame.mask) for frame in benchmark.make_clip(12, 128, *benchmark.SPEEDS["fast"])]
    still = clip[0].mask
    error = average_error = 0.0
    for frame, saliency in zip(clip, smoothed(clip), strict=True):
        still = 0.8 * still + 0.2 * frame.mask
        error += np.abs(saliency - frame.mask).mean()
        average_error += np.abs(still - frame.mask).mean()
    assert error < average_error / 7


def test_the_first_frame_and_that_after_a_cut_are_returned_as_they_are() -> None:
    smoother = Smoother()
    scenes = [RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1) for _ in range(2)]
    maps = list(RNG.random((4, 64, 64)).astype(np.float32))
    assert smoother(scenes[0], maps[0]) is maps[0]
    assert np.abs(smoother(scenes[0], maps[1]) - maps[1]).mean() > 0.1
    assert smoother(scenes[1], maps[2]) is maps[2]
    assert np.abs(smoother(scenes[1], maps[3]) - maps[3]).mean() > 0.1


@pytest.mark.parametrize("size", [1, 7, 33])
def test_any_size(size: int) -> None:
    smoother = Smoother()
    image = RNG.integers(0, 256, (size, size, 3), dtype=np.uint8)
    for _ in range(2):
        assert smoother(image, np.ones((size, size), np.float32)).min() > 0.99


class Flickering(Brightness):
    """A predictor whose maps are 1 and 0 by turns."""

    def square_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        maps = np.empty_like(super().square_maps(images, batch_size))
        for index in range(len(maps)):
            maps[index] = self.turn = 1 - getattr(self, "turn", 0)
        return maps


def test_videos_are_smoothed_each_on_its_own(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from purinet_jax.prediction.video import predict_video

    source = tmp_path / "clip.mkv"
    with av.open(str(source), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        image = RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        for _ in range(6):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode(None))

    def levels(style: Style) -> np.ndarray:
        output = tmp_path / f"{style.smooth}.mkv"
        predict_video(Flickering(), source, output, style, batch_size=3)
        with av.open(str(output)) as file:
            return np.array([frame.to_ndarray(format="gray").mean() for frame in file.decode(video=0)])

    plain = levels(Style("map"))
    assert np.ptp(plain) > 200
    smooth = levels(Style("map", smooth=True))
    assert len(smooth) == len(plain)
    assert smooth[0] > 230  # the first is not averaged with the last of the video before
    assert np.abs(np.diff(smooth)).max() < 150
    assert np.abs(np.diff(smooth))[2:].max() < np.abs(np.diff(plain)).min() - 50
    predict_video(Flickering(), source, tmp_path / "blurred.mkv", Style("cutout", background=Blur(), smooth=True))
