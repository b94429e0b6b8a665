"""What is known of the seven data sets of the field, as plain data: whose they are, how many pairs they hold, what they
come in, and which of their images ought not to be trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass


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
    licence: str = "not stated by the authors"


DUTS = SalientSet(
    key="duts",
    name="DUTS",
    description="DUTS-TR, the field's training set (split train; images of ImageNet DET), and DUTS-TE (split test; "
    "images of ImageNet DET and SUN), both with masks drawn by hand.",
    counts={"train": 10_553, "test": 5_019},
    words=("duts",),
    archives="DUTS-TR.zip with DUTS-TR-Image and DUTS-TR-Mask, and DUTS-TE.zip with DUTS-TE-Image and DUTS-TE-Mask",
    homepage="http://saliencydetection.net/duts/",
    citation="""@inproceedings{wang2017learning,
  title = {Learning to Detect Salient Objects with Image-Level Supervision},
  author = {Wang, Lijun and Lu, Huchuan and Wang, Yifan and Feng, Mengyang and Wang, Dong and Yin, Baocai and Ruan, Xiang},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {136--145},
  year = {2017}
}""",  # noqa: E501
    licence="none stated; the authors' page: All rights reserved by the original authors of DUTS Image Dataset",
)

ECSSD = SalientSet(
    key="ecssd",
    name="ECSSD",
    description="Extended Complex Scene Saliency Dataset: images from the internet with complex structure.",
    counts={"test": 1_000},
    words=("ecssd",),
    archives="images.zip and ground_truth_mask.zip",
    homepage="https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
    citation="""@inproceedings{yan2013hierarchical,
  title = {Hierarchical Saliency Detection},
  author = {Yan, Qiong and Xu, Li and Shi, Jianping and Jia, Jiaya},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {1155--1162},
  year = {2013}
}""",
)

DUT_OMRON = SalientSet(
    key="dut_omron",
    name="DUT-OMRON",
    description="Images with one or more salient objects and fairly complex grounds, chosen from over 140,000.",
    counts={"test": 5_168},
    words=("dutomron", "omron"),
    archives="DUT-OMRON-image.zip with DUT-OMRON-image, and DUT-OMRON-gt-pixelwise.zip.zip with pixelwiseGT-new-PNG",
    homepage="http://saliencydetection.net/dut-omron/",
    citation="""@inproceedings{yang2013saliency,
  title = {Saliency Detection via Graph-Based Manifold Ranking},
  author = {Yang, Chuan and Zhang, Lihe and Lu, Huchuan and Ruan, Xiang and Yang, Ming-Hsuan},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {3166--3173},
  year = {2013}
}""",
)

PASCAL_S = SalientSet(
    key="pascal_s",
    name="PASCAL-S",
    description="Images of the PASCAL VOC 2010 validation set; the masks' grey values say how many of twelve people "
    "chose an object.",
    counts={"test": 850},
    words=("pascal",),
    archives="salObj.zip with datasets/imgs/pascal and datasets/masks/pascal",
    homepage="http://cbs.ic.gatech.edu/salobj/",
    citation="""@inproceedings{li2014secrets,
  title = {The Secrets of Salient Object Segmentation},
  author = {Li, Yin and Hou, Xiaodi and Koch, Christof and Rehg, James M. and Yuille, Alan L.},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {280--287},
  year = {2014}
}""",
)

HKU_IS = SalientSet(
    key="hku_is",
    name="HKU-IS",
    description="Images with several salient objects, with objects at the border, or of low contrast.",
    counts={"test": 4_447},
    words=("hkuis", "hku"),
    archives="HKU-IS.rar, to be unpacked first, with imgs and gt",
    homepage="https://i.cs.hku.hk/~gbli/deep_saliency.html",
    citation="""@inproceedings{li2015visual,
  title = {Visual Saliency Based on Multiscale Deep Features},
  author = {Li, Guanbin and Yu, Yizhou},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {5455--5463},
  year = {2015}
}""",
)

XPIE = SalientSet(
    key="xpie",
    name="XPIE",
    description="Images of Panoramio, ImageNet and two sets of eye fixations, in which people found a clear object.",
    counts={"test": 10_000},
    words=("xpie",),
    archives="XPIE.tar.gz, to be unpacked first",
    homepage="http://cvteam.net/projects/CVPR17-ELE/ELE.html",
    citation="""@inproceedings{xia2017what,
  title = {What Is and What Is Not a Salient Object? Learning Salient Object Detector by Ensembling Linear Exemplar Regressors},
  author = {Xia, Changqun and Li, Jia and Chen, Xiaowu and Zheng, Anlin and Zhang, Yu},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {4142--4150},
  year = {2017}
}""",  # noqa: E501
)

SOD = SalientSet(
    key="sod",
    name="SOD",
    description="Salient objects on the images of the Berkeley Segmentation Dataset (BSDS300), drawn by seven people; "
    "the masks in use combine them.",
    counts={"test": 300},
    words=("sod",),
    archives="folders of images and masks as other authors hand them out (the original SOD.zip holds each person's "
    "boundaries as .mat files, and no masks)",
    homepage="https://www.elderlab.yorku.ca/resources/salient-objects-dataset-sod/",
    citation="""@inproceedings{movahedi2010design,
  title = {Design and Perceptual Validation of Performance Measures for Salient Object Segmentation},
  author = {Movahedi, Vida and Elder, James H.},
  booktitle = {IEEE Computer Society Conference on Computer Vision and Pattern Recognition Workshops},
  pages = {49--56},
  year = {2010}
}""",
)

VERSION = "1.0.0"
"""Of the sets that `purinet prepare` and the builders write; another one where their contents change."""

SETS = {each.key: each for each in (DUTS, ECSSD, DUT_OMRON, PASCAL_S, HKU_IS, XPIE, SOD)}
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
