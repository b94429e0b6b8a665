"""All measures of one image, and their sums over a data set, whose size does not depend on the number of images."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from purinet_jax.errors import InputError
from purinet_jax.evaluation.metrics.boundary import boundary_iou
from purinet_jax.evaluation.metrics.comparison import BACKGROUND, OBJECT, SOFT, Comparison, Protocol, compare
from purinet_jax.evaluation.metrics.structure import s_measure
from purinet_jax.evaluation.metrics.thresholds import e_measure, f_measure, found_by_threshold, precision_and_recall
from purinet_jax.evaluation.metrics.weighted import weighted_f

NUMBERS = (
    "mae",
    "weighted_f",
    "s_measure",
    "f_max",
    "f_mean",
    "f_adaptive",
    "e_max",
    "e_mean",
    "e_adaptive",
    "boundary_iou",
)
"""The numbers of `Measures` without its curves, in the order of a table."""


class Measures(NamedTuple):
    """The numbers of one image or of a data set by one protocol, in [0, 1]; a small `mae` is good, large others are.

    Attributes:
      mae: mean absolute error (Perazzi, Krähenbühl, Pritch, Hornung: Saliency Filters, CVPR 2012).
      weighted_f: weighted F-measure, β = 1.
      s_measure: structure measure, α = 0.5.
      boundary_iou: boundary IoU, of the map cut at half.
      f_adaptive: F-measure, β² = 0.3, at a threshold of twice the map's mean.
      e_adaptive: E-measure at that threshold (up to n / (n − 1), n the number of pixels).
      precision_adaptive: precision at that threshold.
      recall_adaptive: recall at that threshold.
      precision: precision by threshold, float64 [256].
      recall: recall by threshold, float64 [256].
      f: F-measure by threshold, float64 [256].
      e: E-measure by threshold, float64 [256].
    """

    mae: float
    weighted_f: float
    s_measure: float
    boundary_iou: float
    f_adaptive: float
    e_adaptive: float
    precision_adaptive: float
    recall_adaptive: float
    precision: np.ndarray
    recall: np.ndarray
    f: np.ndarray
    e: np.ndarray

    @property
    def f_max(self) -> float:
        """The curve's largest F-measure."""
        return float(self.f.max())

    @property
    def f_mean(self) -> float:
        """The curve's mean F-measure."""
        return float(self.f.mean())

    @property
    def e_max(self) -> float:
        """The curve's largest E-measure."""
        return float(self.e.max())

    @property
    def e_mean(self) -> float:
        """The curve's mean E-measure."""
        return float(self.e.mean())

    def numbers(self) -> dict[str, float]:
        """All but the curves, by name, in the order of `NUMBERS`."""
        return {name: float(getattr(self, name)) for name in NUMBERS}


def measure(saliency: np.ndarray, mask: np.ndarray, protocol: Protocol, name: str = "map") -> Measures:
    """Measures one map against its mask.

    Without an object in the mask, weighted F, F, precision and recall are 0, S is 1 − the map's mean, E the share of
    pixels that are not found, and boundary IoU 0, or 1 if nothing is found. Without background, S is the map's mean and
    E the share of pixels that are found. A constant map is not stretched. Results differ from PySODMetrics' in
    `s_measure` (empty or constant quadrants), `e_measure` (one pixel) and `compare` (masks of zeros and ones).

    Args:
      saliency: uint8 [height, width], or floating of any finite range.
      mask: uint8 [height, width], grey from 0 to 255 (one of zeros and ones alone is 0 and 255), or bool.
      protocol: "purnet" or "pysod" (see the package).
      name: the map's name in errors.

    Returns:
      The image's numbers. `f` and `f_adaptive` are those of the image's own precision and recall.

    Raises:
      InputError: another dtype or number of axes, no pixels, NaN or infinity, a constant map of floats outside [0, 1],
        or, with "pysod", a map that has not its mask's size.
    """
    comparison = compare(saliency, mask, protocol, name)
    levels, counts = comparison.levels, comparison.counts
    by_kind = counts.sum(0)
    area, objects = int(by_kind.sum()), int(by_kind[OBJECT].sum())

    # How many pixels of each kind are found at the 256 thresholds and, last, at the adaptive one, [257].
    adaptive = _reach_adaptive_threshold(comparison)
    found = [np.append(found_by_threshold(levels, kind), kind[adaptive].sum()) for kind in by_kind]
    precision, recall = precision_and_recall(found[OBJECT], found[BACKGROUND], objects)
    f = f_measure(precision, recall)
    e = e_measure(found[OBJECT], found[BACKGROUND] + found[SOFT], objects, area)
    return Measures(
        mae=_mean_error(comparison),
        weighted_f=weighted_f(comparison.values, comparison.objects),
        s_measure=s_measure(levels, counts[:, BACKGROUND] + counts[:, SOFT], counts[:, OBJECT]),
        boundary_iou=boundary_iou(comparison.values, comparison.objects),
        f_adaptive=float(f[-1]),
        e_adaptive=float(e[-1]),
        precision_adaptive=float(precision[-1]),
        recall_adaptive=float(recall[-1]),
        precision=precision[:-1],
        recall=recall[:-1],
        f=f[:-1],
        e=e[:-1],
    )


def _mean_error(comparison: Comparison) -> float:
    levels, by_kind = comparison.levels, comparison.counts.sum(0)
    wrong = (1 - levels) @ by_kind[OBJECT] + levels @ (by_kind[BACKGROUND] + by_kind[SOFT])
    return float(wrong / comparison.values.size)


def _reach_adaptive_threshold(comparison: Comparison) -> np.ndarray:
    """Which levels reach twice the map's mean: bool [levels]. Achanta et al. 2009, in each protocol's arithmetic."""
    if comparison.protocol == "pysod":
        return comparison.levels >= min(2 * comparison.values.mean(), 1)
    scores = comparison.levels * 255
    mean = scores @ comparison.counts.sum((0, 1)) / comparison.values.size
    return scores >= np.floor(min(2 * mean, 255))


_NO_CURVE = np.zeros(256)
_NOTHING = Measures(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, _NO_CURVE, _NO_CURVE, _NO_CURVE, _NO_CURVE)


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums of `Measures` over a data set, to which an image's measures can be added:

        totals = sum((measure(saliency, mask, "pysod") for saliency, mask in pairs), Totals("pysod"))
        totals.average().f_max

    Attributes:
      protocol: the protocol of all numbers.
      images: how many there are.
      sums: of each number and curve.
    """

    protocol: Protocol
    images: int = 0
    sums: Measures = _NOTHING

    def __add__(self, other: "Measures | Totals") -> "Totals":
        """Totals with one image more, or with those of other totals; the order changes only rounding."""
        if isinstance(other, Measures):
            other = Totals(self.protocol, 1, other)
        if self.protocol != other.protocol:
            raise ValueError(f"totals of two protocols, {self.protocol} and {other.protocol}, cannot be added")
        pairs: Any = zip(self.sums, other.sums, strict=True)
        sums = Measures(*(one + another for one, another in pairs))
        return Totals(self.protocol, self.images + other.images, sums)

    def average(self) -> Measures:
        """Means over the data set; with "purnet", F is that of the mean precision and the mean recall.

        Raises:
          InputError: there are no images.
        """
        if self.images == 0:
            raise InputError("there are no images to average over")
        sums: Any = self.sums
        means = Measures(*(value / self.images for value in sums))
        if self.protocol == "pysod":
            return means
        precision, recall = np.array(means.precision_adaptive), np.array(means.recall_adaptive)
        return means._replace(
            f=f_measure(means.precision, means.recall), f_adaptive=float(f_measure(precision, recall))
        )
