"""What is known of the seven data sets of the field, as plain data (`sets.toml`): whose they are, how many pairs they
hold, what they come in; and which of their images ought not to be trained on.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SalientSet:
    """A published data set.

    `key` names it in commands and in TFDS, `name` in papers. `counts` are pairs by split. `words` are how the names
    of its folders and archives begin, in lower case. `archives` says in what the authors hand it out.
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
"""Of the sets that `purinet prepare` and the builders write; another one where their contents change."""

SETS = {
    key: SalientSet(key=key, **{**described, "words": tuple(described["words"])})
    for key, described in tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8")).items()
}
"""All of them, by key."""

COPIES_OF_TEST_IMAGES = {"ILSVRC2014_train_00019441": "ILSVRC2013_test_00005864"}
"""Training images of DUTS-TR that are test images as well, and as which ones of DUTS-TE."""

# Found by comparing the bytes of all 10,553 images of DUTS-TR: exactly these eleven pairs are equal. Their masks were
# drawn twice and differ a little (intersection over union .92 to .99).
# Thumbnails of 16×16 pixels that correlate by more than .93 (plain or mirrored), looked at one by one, gave ten pairs
# more, of the same photograph saved anew. They are different files, of which both stay in:
#   by .9999, grey values apart by 0.9 to 1.8 on average, masks alike by .94 to .99: n07739125_2134 and n07749582_1810,
#   n07739125_973 and n07749582_846, ILSVRC2012_test_00010007 and n03797390_8870, n07739125_4053 and n07753592_4371,
#   ILSVRC2014_train_00028682 and n07718747_761, ILSVRC2014_train_00060328 and n04023962_5896,
#   ILSVRC2014_train_00032306 and n03764736_2851, ILSVRC2014_train_00057091 and n04023962_5457;
#   as these, but the masks show different objects (.18): n03211117_5916 and n04074963_7087;
#   by .978, of another brightness: ILSVRC2013_test_00008531 and ILSVRC2014_train_00020487.
# The next candidates (.955 and below) show different scenes.
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
"""Training images of DUTS-TR that stand in it twice: the second copy, and its first."""
