"""Makes photos into pencil drawings: pairs to fine-tune on (docs/finetune.md) that no data set of salient objects has.

    python examples/drawings.py DUTS-TR.zip drawings

Takes the 300 pairs of DUTS-TR that were held out when the package's weights were trained: 240 go into drawings/train,
60 into drawings/test. Masks are not changed.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from purinet_jax.data import Pairs, open_pairs


def pencil(image: np.ndarray) -> np.ndarray:
    """Returns dark lines on white, uint8 [height, width], of an image [height, width, 3]: each pixel's grey divided by
    the mean around it."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.divide(grey, cv2.GaussianBlur(grey, (0, 0), 6), scale=255)


def write_drawings(pairs: Pairs, folder: Path) -> None:
    """Writes each pair's drawing and mask to `folder`, under the pair's name."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(pairs.names):
        pair = pairs[index]
        Image.fromarray(pencil(pair["image"])).save(folder / "images" / f"{name}.png")
        Image.fromarray(255 * pair["mask"]).save(folder / "masks" / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="DUTS-TR, a folder or zip")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--pairs", type=int, default=300, help="how many to take (default 300)")
    arguments = parser.parse_args()
    _, held_out = open_pairs(arguments.data).hold_out(arguments.pairs, seed=0)
    train, test = held_out.hold_out(arguments.pairs // 5, seed=0)
    write_drawings(train, arguments.output / "train")
    write_drawings(test, arguments.output / "test")


if __name__ == "__main__":
    main()
