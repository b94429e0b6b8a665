"""Draws pictures of several folders side by side: one picture to see what a network finds.

    python scripts/contact_sheet.py IMAGES MASKS MAPS SHEET.png

Each folder gives a column. A row is an image of the first one with the files of its name in the others.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from purinet_jax.evaluation.plots import fit
from purinet_jax.network.panels import tile


def contact_sheet(
    images: Path, *others: Path, across: int = 2, cell: int = 128, count: int | None = None
) -> np.ndarray:
    """Rows of pictures, in the order of the images' names.

    Args:
      images, others: folders.
      across: how many images, each with its pictures of the other folders, stand side by side.
      cell: side of the square that each picture is fitted into, pixels.
      count: how many images at most; all of them if not given. What does not fill a row is left out.

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
    with Image.open(file) as picture:
        if picture.mode == "RGBA":  # a cut-out, on white
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return fit(np.asarray(picture.convert("RGB")), cell)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws pictures of several folders side by side.")
    parser.add_argument("images", type=Path, help="the first folder")
    parser.add_argument("others", type=Path, nargs="+", help="folders of masks, maps, cut-outs …")
    parser.add_argument("sheet", type=Path, help="the picture to write")
    parser.add_argument("--across", type=int, default=2, help="images side by side (default 2)")
    parser.add_argument("--cell", type=int, default=128, help="side of each picture, pixels (default 128)")
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
