"""The seven data sets of the field, described by `sets.toml`, and images of DUTS-TR that should not be trained on."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SalientSet:
    """A published data set.

    Attributes:
      key: its name in commands and in TFDS.
      name: its name in papers.
      counts: the number of pairs by split.
      words: prefixes of the names of its folders and archives, in lower case.
      archives: the authors' archives, in words.
    """

    key: str
    name: str
    description: str
    counts: Mapping[str, int]
    words: tuple[str, ...]
    archives: str
    homepage: str
    citation: str
    licence: str


VERSION = "1.0.0"
"""Of the sets that `purinet prepare` and the builders write."""

SETS = {
    key: SalientSet(key=key, **{**described, "words": tuple(described["words"])})
    for key, described in tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8")).items()
}
"""All data sets, by key."""

COPIES_OF_TEST_IMAGES = {"ILSVRC2014_train_00019441": "ILSVRC2013_test_00005864"}
"""Training images of DUTS-TR that are also test images of DUTS-TE, with their names there."""

# Found by comparing the bytes of all 10,553 images of DUTS-TR: exactly these eleven pairs are equal. Their masks were
# drawn twice and differ slightly (intersection over union .92 to .99).
# Ten more pairs show the same photograph, saved again (their thumbnails of 16×16 pixels correlate by more than .93):
# different files, of which both stay in.
TWINS = {
    "ILSVRC2012_test_00035092": "ILSVRC2012_test_00009041",
    "ILSVRC2012_test_00040606": "ILSVRC2012_test_00036115",
    "ILSVRC2014_train_00001213": "ILSVRC2013_test_00008526",
    "ILSVRC2014_train_00002378": "ILSVRC2013_val_00003498",
    "n01744401_5830": "n01740131_4356",
    "n03790512_7198": "n03513137_2694",
    "n04152593_35530": "n03782006_11777",
    "n04152593_36116": "n03782006_12149",
    "n04152593_40897": "n03782006_15344",
    "n04152593_41857": "n03782006_15934",
    "n04357314_13732": "n03690938_9043",
}
"""Training images of DUTS-TR that it holds twice: the second copy, and the first."""


def sets_named(parts: Sequence[str]) -> set[str]:
    """Returns the keys of the data sets that the innermost of these folder names that fits any may mean."""
    for part in reversed(parts):
        names = (*words(part), "".join(words(part)))
        if keys := {key for key, known in SETS.items() if any(name.startswith(known.words) for name in names)}:
            return keys
    return set()


def words(name: str) -> list[str]:
    """Splits a folder's name into its words and numbers, in lower case."""
    return re.findall("[a-z]+|[0-9]+", name.lower())
