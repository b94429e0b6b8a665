"""Plots of an evaluation: curves, and the worst images."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from purinet_jax.data.images import to_png
from purinet_jax.errors import InputError
from purinet_jax.evaluation.evaluate import Evaluation, evaluate
from purinet_jax.evaluation.methods import open_maps, open_masks
from purinet_jax.evaluation.metrics import Totals
from purinet_jax.evaluation.plots import check_plots, draw_curves, draw_worst, write_plots


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for folder in ("masks", "one", "two"):
        (tmp_path / folder).mkdir()
        for index in range(3):
            grey = generator.integers(0, 2 if folder == "masks" else 256, (20, 30), np.uint8)
            (tmp_path / folder / f"{index}.png").write_bytes(to_png(grey * np.uint8(255 if folder == "masks" else 1)))
    return tmp_path


def test_curves_for_each_data_set_and_worst_images_for_each_method(folders: Path) -> None:
    methods = [open_maps(folders / "one"), open_maps(folders / "two", "_a/$b_$")]
    truths = [open_masks(folders / "masks", "set:test")]
    evaluations = evaluate(methods, truths, progress=False)
    files = write_plots(folders / "new" / "plots", evaluations, methods, truths)
    names = ["set-test-curves.png", "set-test-one-worst.png", "set-test-_a-b_--worst.png"]
    assert [file.name for file in files] == names
    assert sorted(file.name for file in (folders / "new" / "plots").iterdir()) == sorted(names)
    with Image.open(files[0]) as curves:
        assert curves.width == 1320
        assert curves.height > 2 * 400  # a row for each protocol
    written = files[0].read_bytes()
    assert write_plots(folders / "new" / "plots", evaluations, methods, truths) == files
    assert files[0].read_bytes() == written
    (one_protocol,) = evaluate(methods[:1], truths, protocols=["pysod"], progress=False)
    assert len(draw_curves([one_protocol]).axes) == 3


def test_many_methods_have_curves_that_differ(folders: Path) -> None:
    truth = open_masks(folders / "masks")
    names = [f"_method {index}" for index in range(9)]  # of which matplotlib's own legend would hold none
    methods = [open_maps(folders / "one", name) for name in names]
    figure = draw_curves(evaluate(methods, [truth], progress=False))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    for axis in figure.axes:
        styles = {(line.get_color(), line.get_linestyle()) for line in axis.get_lines()}
        assert len(styles) == len(axis.get_lines()) == 9


def entry(value: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, a mask (right half) and a map (lower half)."""
    image = np.full((36, 36, 3), value, np.uint8)
    mask, saliency = np.zeros((2, 36, 36), np.uint8)
    mask[:, 18:] = saliency[18:] = 255
    return image, mask, saliency


def test_the_worst_images_are_drawn_with_mask_map_and_error() -> None:
    protocols: Any = {"purnet": Totals("purnet", 3)}
    worst = (("first", 0.5), ("second", 0.4), ("a long name that does not fit " * 9, 0.3))
    evaluation = Evaluation("method", "set", protocols, (), None, worst)
    figure = draw_worst(evaluation, [entry(100), entry(150), entry(200)], across=2)
    drawn = [[image.get_array() for image in axis.get_images()] for axis in figure.axes]
    assert [len(images) for images in drawn] == [1] * 12 + [0] * 4  # there is no fourth

    def quarters(index: int) -> list[list[int]]:
        (image,) = drawn[index]
        return [image[y, x].tolist() for y in (10, 30) for x in (10, 30)]

    white, black, red, blue = [255] * 3, [0] * 3, [255, 0, 0], [0, 0, 255]
    assert quarters(0) == [[100] * 3] * 4
    assert quarters(1) == [black, white, black, white]
    assert quarters(2) == [black, black, white, white]
    assert quarters(3) == [white, red, blue, white]
    assert quarters(4) == [[150] * 3] * 4
    assert quarters(8) == [[200] * 3] * 4
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "first   MAE 0.500"
    assert len(titles[8]) == 48 + len("   MAE 0.300")
    assert figure.get_suptitle().startswith("method on set: 3 by MAE (purnet)")


def test_without_images_mask_map_and_error_are_drawn() -> None:
    protocols: Any = {"pysod": Totals("pysod", 1)}
    evaluation = Evaluation("method", "set", protocols, (), None, (("only", 0.5),))
    _, mask, saliency = entry(0)
    assert len(draw_worst(evaluation, [(None, mask, saliency)]).axes) == 3


def test_requirements_of_plots_are_checked_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written to: Not a directory"):
        check_plots(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"needs matplotlib: pip install 'purinet_jax\[plots\]'"):
        check_plots(tmp_path / "plots")
    assert not (tmp_path / "plots").exists()
