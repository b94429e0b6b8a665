"""Draws images beside their masks and predicted maps: one picture to see what a network finds.

    python scripts/contact_sheet.py IMAGES MASKS MAPS SHEET.png

The first three are folders; an image's mask and map are PNG files of its name.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from purinet_jax.panels import tile
from purinet_jax.plots import fit


def contact_sheet(
    images: Path, masks: Path, maps: Path, *, across: int = 2, cell: int = 128, count: int | None = None
) -> np.ndarray:
    """Rows of image | mask | map, in the order of the images' names.

    Args:
      images, masks, maps: folders.
      across: how many of these triples stand side by side.
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
        for folder in (masks, maps):
            columns.append([_fit(folder / f"{file.stem}.png", cell) for file in chosen])
    return tile([np.stack(column) for column in columns])


def _fit(file: Path, cell: int) -> np.ndarray:
    with Image.open(file) as picture:
        return fit(np.asarray(picture.convert("RGB")), cell)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws images beside their masks and predicted maps.")
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("maps", type=Path)
    parser.add_argument("sheet", type=Path, help="the picture to write")
    parser.add_argument("--across", type=int, default=2, help="triples side by side (default 2)")
    parser.add_argument("--cell", type=int, default=128, help="side of each picture, pixels (default 128)")
    parser.add_argument("--count", type=int, help="images at most (default all)")
    arguments = parser.parse_args()
    sheet = contact_sheet(
        arguments.images,
        arguments.masks,
        arguments.maps,
        across=arguments.across,
        cell=arguments.cell,
        count=arguments.count,
    )
    Image.fromarray(sheet).save(arguments.sheet)


if __name__ == "__main__":
    main()
