"""Curves and sheets of an evaluation: what is drawn where."""

import io
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
from purinet_jax.evaluation.plots import GROUND_COLOUR, draw_curves, draw_worst, open_plots, write_plots

CELL = 40


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for folder in ("masks", "one", "two"):
        (tmp_path / folder).mkdir()
        for index in range(3):
            grey = generator.integers(0, 2 if folder == "masks" else 256, (20, 30), np.uint8)
            (tmp_path / folder / f"{index}.png").write_bytes(to_png(grey * np.uint8(255 if folder == "masks" else 1)))
    return tmp_path


def test_a_figure_for_each_set_and_a_sheet_for_each_method(folders: Path) -> None:
    methods = [open_maps(folders / "one"), open_maps(folders / "two", "a/b")]
    truths = [open_masks(folders / "masks", "set:test")]
    evaluations = evaluate(methods, truths, progress=False)
    open_plots(folders / "new" / "plots")
    files = write_plots(folders / "new" / "plots", evaluations, methods, truths)
    names = ["set-test-curves.png", "set-test-one-worst.png", "set-test-a-b-worst.png"]
    assert [file.name for file in files] == names
    assert sorted(file.name for file in (folders / "new" / "plots").iterdir()) == sorted(names)
    with Image.open(files[0]) as curves:
        assert curves.width == 1320
        assert curves.height > 2 * 400  # a row for each protocol
    assert draw_curves(evaluations) == files[0].read_bytes()
    (one_protocol,) = evaluate(methods[:1], truths, protocols=["pysod"], progress=False)
    with Image.open(io.BytesIO(draw_curves([one_protocol]))) as curves:
        assert curves.height < 600


def test_many_methods_have_curves_that_differ(folders: Path) -> None:
    truth = open_masks(folders / "masks")
    methods = [open_maps(folders / "one", f"method {number}") for number in range(9)]
    with Image.open(io.BytesIO(draw_curves(evaluate(methods, [truth], progress=False)))) as curves:
        colours = {colour for _, colour in curves.convert("RGB").getcolors(1 << 20) or []}
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"):
        assert tuple(bytes.fromhex(colour[1:])) in colours


def entry(value: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, mask (right half) and map (lower half) of the cell's shape."""
    image = np.full((36, 36, 3), value, np.uint8)
    mask, saliency = np.zeros((2, 36, 36), np.uint8)
    mask[:, 18:] = saliency[18:] = 255
    return image, mask, saliency


def test_a_sheet_shows_image_mask_map_and_error() -> None:
    protocols: Any = {"purnet": Totals("purnet", 3)}
    worst = (("first", 0.5), ("second", 0.4), ("a long name that does not fit " * 9, 0.3))
    evaluation = Evaluation("method", "set", protocols, (), None, worst)
    sheet = draw_worst(evaluation, [entry(100), entry(150), entry(200)], across=2, cell=CELL)
    line = 18
    assert sheet.shape == (2 * line + 2 * (line + CELL), 2 * 4 * CELL, 3)
    top = 3 * line
    quarters = [top + 10, top + 30], [10, 30]

    def four(column: int) -> list[list[list[int]]]:
        return [[sheet[y, column * CELL + x].tolist() for x in quarters[1]] for y in quarters[0]]

    white, black, red, blue = [255] * 3, [0] * 3, [255, 0, 0], [0, 0, 255]
    assert four(0) == [[[100] * 3] * 2] * 2
    assert four(1) == [[black, white]] * 2
    assert four(2) == [[black, black], [white, white]]
    assert four(3) == [[white, red], [blue, white]]
    assert four(4) == [[[150] * 3] * 2] * 2
    below = sheet[top + CELL + line :]
    assert (below[20, 20] == 200).all()
    assert (below[:, 4 * CELL :] == GROUND_COLOUR).all()  # there is no fourth
    assert (sheet[:line] != GROUND_COLOUR).any()  # the title


def test_without_images_a_sheet_has_three_columns() -> None:
    protocols: Any = {"pysod": Totals("pysod", 1)}
    evaluation = Evaluation("method", "set", protocols, (), None, (("only", 0.5),))
    _, mask, saliency = entry(0)
    assert draw_worst(evaluation, [(None, mask, saliency)], cell=CELL).shape[1] == 3 * CELL


def test_what_plots_need_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be made"):
        open_plots(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"needs matplotlib: pip install 'purinet_jax\[plots\]'"):
        open_plots(tmp_path / "plots")
    assert not (tmp_path / "plots").exists()
