"""Evaluations as pictures: curves of all methods on a data set, and sheets of the images that a method found hardest.
Curves need matplotlib (the extra `plots`), which is imported nowhere else.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from purinet_jax.data.images import to_png
from purinet_jax.errors import InputError
from purinet_jax.evaluation.evaluate import WORST, Evaluation, examples
from purinet_jax.evaluation.methods import GroundTruth, Method
from purinet_jax.evaluation.metrics import Protocol
from purinet_jax.evaluation.metrics.comparison import compare
from purinet_jax.files import write_atomically
from purinet_jax.network.panels import grey_colours, signed_colours, tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUND_COLOUR = (24, 32, 56)
"""What surrounds the pictures of a sheet: a dark blue that no mask or map has."""

# Okabe and Ito's colours, which stay apart in every kind of colour blindness, without the yellow, too pale for a line.
# Strokes differ too, so that curves which coincide are both seen; 28 methods look different.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STROKES = ("-", "--", "-.", ":")

_GAP = 4  # between pictures, pixels
_LINE = 18  # height of a line of text, pixels


def open_plots(folder: Path) -> None:
    """Makes the folder for plots, if there is none. Raises InputError if that fails, or matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("plots: needs matplotlib: pip install 'purinet_jax[plots]'") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error


def write_plots(
    folder: Path,
    evaluations: Sequence[Evaluation],
    methods: Sequence[Method],
    truths: Sequence[GroundTruth],
    *,
    batch_size: int = 1,
) -> list[Path]:
    """Draws `<data set>-curves.png` for each data set and `<data set>-<method>-worst.png` for each evaluation.

    Args:
      folder: an existing folder; files of these names are replaced.
      evaluations: what `evaluate` returned.
      methods: what was evaluated.
      truths: on what.
      batch_size: how many images a network takes at once.

    Returns:
      The files.

    Raises:
      InputError: a file cannot be written, or read a second time.
    """
    files = []
    for truth in truths:
        own = [each for each in evaluations if each.ground_truth == truth.name]
        files.append(folder / f"{_file_name(truth.name)}-curves.png")
        write_atomically(files[-1], draw_curves(own))
    by_name = {method.name: method for method in methods}
    sets = {truth.name: truth for truth in truths}
    for each in evaluations:
        names = [name for name, _ in each.worst]
        shown = examples(by_name[each.method], sets[each.ground_truth], names, batch_size=batch_size)
        files.append(folder / f"{_file_name(each.ground_truth)}-{_file_name(each.method)}-worst.png")
        write_atomically(files[-1], to_png(draw_worst(each, shown)))
    return files


def draw_curves(evaluations: Sequence[Evaluation]) -> bytes:
    """Precision over recall, F over threshold and E over threshold, a row of the three for each protocol.

    Args:
      evaluations: those of one data set, by the same protocols.

    Returns:
      A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    protocols = list(evaluations[0].totals)
    legend_rows = -(-len(evaluations) // 4)
    height = 3.5 * len(protocols) + 0.3 * legend_rows + 0.5
    figure = Figure(figsize=(11, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(evaluations[0].ground_truth, fontsize=14)
    axes = figure.subplots(len(protocols), 3, squeeze=False)
    thresholds = np.arange(256)
    for row, protocol in zip(axes, protocols, strict=True):
        for number, each in enumerate(evaluations):
            measures = each.totals[protocol].average()
            stroke, colour = _STROKES[number % len(_STROKES)], _COLOURS[number % len(_COLOURS)]
            lines = (
                (measures.recall, measures.precision),
                (thresholds, measures.f),
                (thresholds, measures.e),
            )
            for one, (x, y) in zip(row, lines, strict=True):
                one.plot(x, y, stroke, color=colour, linewidth=1.8, label=each.method)
        _name_axes(row[0], f"Recall ({protocol})", f"Precision ({protocol})", 1)
        _name_axes(row[1], "Threshold (of 255)", f"F-measure ({protocol})", 255)
        _name_axes(row[2], "Threshold (of 255)", f"E-measure ({protocol})", 255)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=11)
    buffer = io.BytesIO()
    # Without the version of matplotlib, the same numbers give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _name_axes(axes: "Axes", x: str, y: str, last: int) -> None:
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.set_xlim(0, last)
    axes.set_ylim(0, 1)
    if last == 255:
        axes.set_xticks(range(0, 256, 51))
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_worst(
    evaluation: Evaluation,
    shown: Iterable[tuple[np.ndarray | None, np.ndarray, np.ndarray]],
    *,
    across: int = 2,
    cell: int = 144,
) -> np.ndarray:
    """A sheet of an evaluation's worst images: image, mask, map and error, as its first protocol sees them.

    The map is stretched, and the error is red where the object is missed, blue where ground is taken for it.

    Args:
      evaluation: names them.
      shown: image, mask and map of each, as `examples` gives them.
      across: how many stand side by side.
      cell: side of the square that each picture is fitted into, pixels.

    Returns:
      uint8 [height, width, 3].
    """
    protocol = next(iter(evaluation.totals))
    entries = []
    for (name, error), (image, mask, saliency) in zip(evaluation.worst, shown, strict=True):
        entries.append(_entry(f"{name}   MAE {error:.3f}", _pictures(image, mask, saliency, protocol), cell))
    across = min(across, len(entries))
    entries += [np.full_like(entries[0], GROUND_COLOUR)] * (-len(entries) % across)
    sheet = tile([np.stack(entries[first::across]) for first in range(across)])
    images = "" if evaluation.images <= WORST else f" {len(evaluation.worst)} worst of"
    title = f"{evaluation.method} on {evaluation.ground_truth}:{images} {evaluation.images:,} by MAE ({protocol})"
    what = "image, mask, map, error: red is object missed, blue is ground taken for it"
    return np.concatenate([_text(title, sheet.shape[1]), _text(what, sheet.shape[1]), sheet])


def _pictures(image: np.ndarray | None, mask: np.ndarray, saliency: np.ndarray, protocol: Protocol) -> list[np.ndarray]:
    """What stands in a row, each uint8 [height, width, 3]."""
    comparison = compare(saliency, mask, protocol)
    objects, values = comparison.objects[..., None], comparison.values[..., None]
    pictures = [grey_colours(objects), grey_colours(values), signed_colours(objects - values)]
    return pictures if image is None else [image, *pictures]


def _entry(caption: str, pictures: Sequence[np.ndarray], cell: int) -> np.ndarray:
    row = tile([fit(picture, cell)[None] for picture in pictures])
    return np.concatenate([_text(caption, row.shape[1]), row])


def fit(picture: np.ndarray, cell: int) -> np.ndarray:
    """Fits a picture uint8 [height, width, 3] whole into a square, uint8 [cell, cell, 3], on `GROUND_COLOUR`."""
    inside = (cell - _GAP, cell - _GAP)
    fitted = ImageOps.pad(Image.fromarray(picture), inside, color=GROUND_COLOUR)
    return np.asarray(ImageOps.expand(fitted, _GAP // 2, GROUND_COLOUR))


def _text(text: str, width: int) -> np.ndarray:
    """A line of text, uint8 [line, width, 3]; what is too long is cut in the middle, where names differ least."""
    font = ImageFont.load_default(13)
    line = Image.new("RGB", (width, _LINE), GROUND_COLOUR)
    kept, shown = len(text), text
    while kept > 2 and font.getlength(shown) > width - 2 * _GAP:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    ImageDraw.Draw(line).text((_GAP, _LINE // 2), shown, (235, 235, 235), font, anchor="lm")
    return np.asarray(line)


def _file_name(name: str) -> str:
    """A name without what file systems or shells take for something else."""
    return re.sub(r"[^\w.-]+", "-", name)
