"""Plots of evaluations: curves of all methods on a data set, and the worst images of each method. Needs matplotlib (the
extra `plots`).
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from purinet_jax.errors import InputError
from purinet_jax.evaluation.evaluate import WORST, Evaluation, examples
from purinet_jax.evaluation.methods import GroundTruth, Method
from purinet_jax.evaluation.metrics.comparison import compare
from purinet_jax.files import check_output_folder, reason, write_atomically
from purinet_jax.network.panels import grey_colours, signed_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours for the colour-blind without their yellow, which is too pale for a line. Strokes differ as
# well, so that of coinciding curves both are visible.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STROKES = ("-", "--", "-.", ":")


def check_plots(folder: Path) -> None:
    """Raises InputError if matplotlib is missing or plots cannot be written to a folder."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("plots: needs matplotlib: pip install 'purinet_jax[plots]'") from error
    check_output_folder(folder)


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
      folder: the folder, made if missing; files of these names are replaced.
      evaluations: those of `methods` on `truths`.
      methods: the methods.
      truths: the data sets.
      batch_size: how many images a network takes at once.

    Returns:
      The files' paths.

    Raises:
      InputError: a file cannot be written, or read a second time.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {reason(error)}") from error
    files = []
    for truth in truths:
        own = [each for each in evaluations if each.ground_truth == truth.name]
        files.append(folder / f"{_file_name(truth.name)}-curves.png")
        write_atomically(files[-1], _png(draw_curves(own)))
    by_name = {method.name: method for method in methods}
    sets = {truth.name: truth for truth in truths}
    for each in evaluations:
        names = [name for name, _ in each.worst]
        shown = examples(by_name[each.method], sets[each.ground_truth], names, batch_size=batch_size)
        files.append(folder / f"{_file_name(each.ground_truth)}-{_file_name(each.method)}-worst.png")
        write_atomically(files[-1], _png(draw_worst(each, shown)))
    return files


def draw_curves(evaluations: Sequence[Evaluation]) -> "Figure":
    """Draws precision over recall, F over threshold and E over threshold, a row of the three per protocol.

    Args:
      evaluations: those of one data set, by the same protocols.
    """
    from matplotlib.figure import Figure

    protocols = list(evaluations[0].totals)
    legend_rows = -(-len(evaluations) // 4)
    height = 3.5 * len(protocols) + 0.3 * legend_rows + 0.5
    figure = Figure(figsize=(11, height), dpi=120, layout="constrained")
    figure.suptitle(evaluations[0].ground_truth, fontsize=14)
    axes = figure.subplots(len(protocols), 3, squeeze=False)
    thresholds = np.arange(256)
    for row, protocol in zip(axes, protocols, strict=True):
        for index, each in enumerate(evaluations):
            measures = each.totals[protocol].average()
            stroke, colour = _STROKES[index % len(_STROKES)], _COLOURS[index % len(_COLOURS)]
            lines = ((measures.recall, measures.precision), (thresholds, measures.f), (thresholds, measures.e))
            for axis, (x, y) in zip(row, lines, strict=True):
                axis.plot(x, y, stroke, color=colour, linewidth=1.8)
        _name_axes(row[0], f"Recall ({protocol})", f"Precision ({protocol})", 1)
        _name_axes(row[1], "Threshold (of 255)", f"F-measure ({protocol})", 255)
        _name_axes(row[2], "Threshold (of 255)", f"E-measure ({protocol})", 255)
    names, columns = [each.method for each in evaluations], min(4, len(evaluations))
    legend = figure.legend(
        axes[0, 0].get_lines(), names, loc="outside lower center", ncols=columns, frameon=False, fontsize=11
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are no formulas
    return figure


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
    evaluation: Evaluation, shown: Iterable[tuple[np.ndarray | None, np.ndarray, np.ndarray]], *, across: int = 2
) -> "Figure":
    """Draws the worst images of an evaluation: image, mask, map and error by its first protocol.

    The map is stretched; the error is red where the object is missed, blue where background is taken for it.

    Args:
      evaluation: names the images.
      shown: image, mask and map of each, as `examples` yields them.
      across: how many images, each with mask, map and error, a row holds.
    """
    from matplotlib.figure import Figure

    protocol = next(iter(evaluation.totals))
    entries = []
    for image, mask, saliency in shown:
        comparison = compare(saliency, mask, protocol)
        objects, values = comparison.objects[..., None], comparison.values[..., None]
        panels = [grey_colours(objects), grey_colours(values), signed_colours(objects - values)]
        entries.append([_thumbnail(panel) for panel in (panels if image is None else [image, *panels])])
    across = min(across, len(entries))
    rows, columns = -(-len(entries) // across), across * len(entries[0])
    height = 1.5 * rows + 0.7
    figure = Figure(figsize=(1.3 * columns, height), dpi=120, facecolor="#182038")
    grid = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 1 - 0.7 / height, "wspace": 0.05, "hspace": 0.15}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid)
    for axis in axes.flat:
        axis.axis("off")
    for own, entry, (name, error) in zip(
        axes.reshape(rows * across, -1),
        entries,
        evaluation.worst,
        strict=False,  # the last row may be incomplete
    ):
        for axis, panel in zip(own, entry, strict=True):
            axis.imshow(panel)
        short = name if len(name) <= 48 else f"{name[:24]}…{name[-23:]}"
        own[0].set_title(f"{short}   MAE {error:.3f}", loc="left", fontsize=8, color="white", pad=3, parse_math=False)
    which = "" if evaluation.images <= WORST else f" {len(evaluation.worst)} worst of"
    title = f"{evaluation.method} on {evaluation.ground_truth}:{which} {evaluation.images:,} by MAE ({protocol})"
    legend = "image, mask, map, error: red is object missed, blue is background taken for it"
    figure.suptitle(f"{title}\n{legend}", fontsize=9, color="white", y=1 - 0.1 / height, parse_math=False)
    return figure


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """An image uint8 [height, width, 3] at no more pixels than are drawn."""
    small = Image.fromarray(image)
    small.thumbnail((256, 256))
    return np.asarray(small)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # Without matplotlib's version, the same numbers give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _file_name(name: str) -> str:
    """A name with only the characters that are safe in file systems and shells."""
    return re.sub(r"[^\w.-]+", "-", name)
