"""The error by both protocols, and whole data sets measured on the maps that the files would hold."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from purinet_jax.data.pairs import open_pairs
from purinet_jax.errors import InputError
from purinet_jax.evaluate import evaluate
from purinet_jax.metrics import Protocol, mean_absolute_error
from purinet_jax.predict import predict_files

RAMP = np.tile(np.arange(0, 256, 51, dtype=np.uint8), (2, 1))  # 0 to 1 in fifths


class Red:
    """Stands in for a predictor: the "network" answers each pixel's red."""

    size = 16

    def squashed_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        assert len(images) <= batch_size
        return np.stack(images)[..., 0].astype(np.float32) / 255


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for index in range(5):
        size = tuple(generator.integers(20, 40, 2))
        image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "set" / "images" / f"{index}.png")
        grey = generator.choice(np.array([0, 100, 128, 129, 200, 255], np.uint8), size)
        Image.fromarray(grey).save(tmp_path / "set" / "masks" / f"{index}.png")
    return tmp_path / "set"


def test_error_of_known_maps() -> None:
    mask = np.array([[0, 0, 0, 255, 255, 255]] * 2, np.uint8)
    assert mean_absolute_error(RAMP, mask) == pytest.approx(0.2)
    assert mean_absolute_error(RAMP, mask > 0) == pytest.approx(0.2)
    assert mean_absolute_error(255 - RAMP, mask) == pytest.approx(0.8)
    assert mean_absolute_error(mask, mask) == 0


def test_maps_are_stretched_to_the_whole_range() -> None:
    mask = RAMP > 100
    assert mean_absolute_error(RAMP // 3 + 20, mask) == pytest.approx(mean_absolute_error(RAMP, mask))
    assert mean_absolute_error(0.1 + RAMP / 1000, mask) == pytest.approx(mean_absolute_error(RAMP, mask))


def test_constant_maps_are_taken_as_they_are() -> None:
    ground = np.zeros((2, 6), bool)
    assert mean_absolute_error(np.full((2, 6), 51, np.uint8), ground) == pytest.approx(0.2)
    assert mean_absolute_error(np.full((2, 6), 0.2), ground) == pytest.approx(0.2)


@pytest.mark.parametrize(("protocol", "objects"), [("purnet", [0, 0, 0, 0, 0, 1]), ("pysod", [0, 0, 0, 1, 1, 1])])
def test_protocols_cut_grey_masks_differently(protocol: Protocol, objects: list[int]) -> None:
    mask = np.array([[0, 1, 128, 129, 254, 255]] * 2, np.uint8)
    expected = mean_absolute_error(RAMP, np.array([objects] * 2, bool))
    assert mean_absolute_error(RAMP, mask, protocol) == expected


def test_masks_of_another_kind_are_refused() -> None:
    for mask in (np.zeros((2, 6)), np.zeros((2, 5), np.uint8)):
        with pytest.raises(ValueError, match="a mask must be bool or uint8"):
            mean_absolute_error(RAMP, mask)


@pytest.mark.parametrize("protocol", ["purnet", "pysod"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_data_set_is_measured_on_the_files_maps(
    root: Path, tmp_path: Path, protocol: Protocol, batch_size: int
) -> None:
    network: Any = Red()
    result = evaluate(network, open_pairs(root), batch_size=batch_size, protocol=protocol, progress=False)
    predict_files(network, [root / "images"], tmp_path / "maps", batch_size=2, progress=False)
    errors = []
    for file in sorted((tmp_path / "maps").iterdir()):
        with Image.open(file) as saliency, Image.open(root / "masks" / file.name) as mask:
            errors.append(mean_absolute_error(np.asarray(saliency), np.asarray(mask), protocol))
    assert len(errors) == 5
    assert result == {"mae": pytest.approx(np.mean(errors)), "images": 5, "protocol": protocol, "size": 16}
    assert json.loads(json.dumps(result)) == result


def test_masks_of_zeros_and_ones_and_of_16_bits(root: Path) -> None:
    for file in (root / "masks").iterdir():
        with Image.open(file) as mask:
            values = np.asarray(mask)
        Image.fromarray(np.where(values == 255, 255, 0).astype(np.uint8)).save(file)
    network: Any = Red()
    expected = evaluate(network, open_pairs(root), progress=False)["mae"]
    for file in (root / "masks").iterdir():
        with Image.open(file) as mask:
            objects = np.asarray(mask) > 0
        ones = int(file.stem) % 2
        Image.fromarray(objects.astype(np.uint8) if ones else objects.astype(np.uint16) * 65535).save(file)
    assert evaluate(network, open_pairs(root), progress=False)["mae"] == expected


def test_unusable_pairs_are_named(root: Path) -> None:
    network: Any = Red()
    pairs = open_pairs(root)
    with pytest.raises(InputError, match="no pairs are left"):
        evaluate(network, pairs.subset([]), progress=False)
    Image.new("L", (7, 7)).save(root / "masks" / "3.png")
    with pytest.raises(InputError, match=r"images/3\.png: the image has \d+×\d+ pixels, but its mask .* 7×7"):
        evaluate(network, pairs, progress=False)
    (root / "masks" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"masks/3\.png: "):
        evaluate(network, pairs, batch_size=2, progress=False)


def test_published_implementations() -> None:
    """Twelve maps measured by the authors' own scripts, and by PySODMetrics."""
    golden = os.environ.get("PURNET_GOLDEN")
    folder = Path(golden or Path(__file__).with_name("fixtures") / "golden") / "metrics"
    if not folder.is_dir():
        pytest.skip("the fixtures hold no metrics")
    expected = json.loads((folder / "expected.json").read_text())

    def error(name: str, protocol: Protocol) -> float:
        with Image.open(folder / "pred" / name) as saliency, Image.open(folder / "gt" / name) as mask:
            return mean_absolute_error(np.asarray(saliency), np.asarray(mask), protocol)

    errors = [error(name, "pysod") for name in expected["pysodmetrics_1.6.2"]["images"]]
    assert np.mean(errors) == pytest.approx(expected["pysodmetrics_1.6.2"]["mae"], abs=1e-9)
    # The twelfth, which the authors resize, has not its mask's size.
    for name in expected["pysodmetrics_1.6.2"]["images"]:
        assert error(name, "purnet") == pytest.approx(expected["authors_matlab"]["images"][name]["mae"], abs=1e-8)
