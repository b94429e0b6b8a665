"""Draws the images of several folders side by side, to see what a network predicts.

    python scripts/contact_sheet.py IMAGES MASKS MAPS SHEET.png

Each folder gives a column. A row is an image of the first one with the files of its name in the others.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from purinet_jax.network.panels import tile

FRAME = (24, 32, 56)


def contact_sheet(
    images: Path, *others: Path, across: int = 2, cell: int = 128, count: int | None = None
) -> np.ndarray:
    """Draws rows of images, sorted by name, each followed by the files of its name in the other folders.

    Args:
      images, others: folders.
      across: how many images are side by side, each with its other files.
      cell: side of the square that each file is fitted into, pixels.
      count: how many images at most; by default all. An incomplete last row is left out.

    Returns:
      uint8 [height, width, 3].
    """
    files = sorted(images.iterdir())[:count]
    rows = len(files) // across
    columns = []
    for first in range(across):
        chosen = files[first : rows * across : across]
        columns.append([_fit(file, cell) for file in chosen])
        for folder in others:
            by_name = {file.stem: file for file in folder.iterdir()}
            columns.append([_fit(by_name[file.stem], cell) for file in chosen])
    return tile([np.stack(column) for column in columns])


def _fit(file: Path, cell: int) -> np.ndarray:
    with Image.open(file) as image:
        if image.mode == "RGBA":  # a cut-out, on white
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        fitted = ImageOps.pad(image.convert("RGB"), (cell - 4, cell - 4), color=FRAME)
        return np.asarray(ImageOps.expand(fitted, 2, FRAME))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the images of several folders side by side.")
    parser.add_argument("images", type=Path, help="the first folder")
    parser.add_argument("others", type=Path, nargs="+", help="folders of masks, maps, cut-outs …")
    parser.add_argument("sheet", type=Path, help="the image to write")
    parser.add_argument("--across", type=int, default=2, help="images side by side (default 2)")
    parser.add_argument("--cell", type=int, default=128, help="side of each image, pixels (default 128)")
    parser.add_argument("--count", type=int, help="images at most (default all)")
    arguments = parser.parse_args()
    sheet = contact_sheet(
        arguments.images,
        *arguments.others,
        across=arguments.across,
        cell=arguments.cell,
        count=arguments.count,
    )
    Image.fromarray(sheet).save(arguments.sheet)


if __name__ == "__main__":
    main()
