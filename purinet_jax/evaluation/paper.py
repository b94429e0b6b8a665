"""The paper's own numbers, and the data sets that they are comparable on: those with the published name and number of
pairs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from purinet_jax.data.archives import without_ending
from purinet_jax.data.sets import SETS, SalientSet


@dataclass(frozen=True)
class PublishedNumbers:
    """A network's numbers in the paper's table (trained on DUTS-TR), protocol "purnet", in [0, 1]."""

    network: str
    mae: float
    weighted_f: float
    f_adaptive: float


# Li, Su, Xia, Ma, Tian, IEEE TIP 2021, by data set: ResNet-50, and VGG-16 below it.
PUBLISHED: Mapping[str, tuple[PublishedNumbers, ...]] = {
    key: (PublishedNumbers("ResNet-50", *resnet), PublishedNumbers("VGG-16", *vgg))
    for key, resnet, vgg in (
        ("ecssd", (0.035, 0.907, 0.928), (0.040, 0.892, 0.920)),
        ("dut_omron", (0.051, 0.747, 0.776), (0.054, 0.730, 0.768)),
        ("pascal_s", (0.070, 0.805, 0.847), (0.076, 0.798, 0.841)),
        ("hku_is", (0.031, 0.889, 0.904), (0.036, 0.870, 0.894)),
        ("duts", (0.039, 0.817, 0.829), (0.043, 0.797, 0.816)),
        ("xpie", (0.041, 0.843, 0.876), (0.044, 0.830, 0.868)),
    )
}
"""The paper's table by the data sets' keys; DUTS stands for its test set."""


def known_test_set(name: str) -> SalientSet | None:
    """Returns the data set of this name if its test pairs are published.

    Args:
      name: of a folder, zip or prepared set, such as "DUTS-TE", "dut_omron.zip" or "duts:test", in any case and with
        any separators. A longer name ("DUTS-TE-300") is another set's.
    """
    for known in SETS.values():
        # "DUTS" alone may be the training set.
        names = {f"{known.name}-TE"} if "train" in known.counts else {known.name, known.key}
        if _plain(name) in map(_plain, (*names, f"{known.key}:test")):
            return known
    return None


def is_same_set(name: str, other: str) -> bool:
    """Whether two names, as in `known_test_set`, are of one data set."""
    known = known_test_set(name)
    return _plain(name) == _plain(other) or (known is not None and known is known_test_set(other))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", without_ending(name.lower()))


def published_numbers(name: str, images: int) -> tuple[PublishedNumbers, ...]:
    """Returns the paper's numbers on a data set; none if it is not in the table or not all its pairs were measured.

    Args:
      name: as in `known_test_set`.
      images: how many were measured.
    """
    known = known_test_set(name)
    if known is None or images != known.counts["test"]:
        return ()
    return PUBLISHED.get(known.key, ())
