"""Draws the edges of cut-outs at full resolution: guided edges, matting, and the blurred background.

    python scripts/edge_sheet.py PHOTOGRAPHS SHEET.webp

A row is a photograph and a part of it in four forms: as it is, cut out, cut out by matting, and on its own background,
blurred. The part, which a frame shows, is where the edge is longest.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from purinet_jax.data.images import read_srgb
from purinet_jax.network.panels import tile
from purinet_jax.prediction.predictor import Predictor, load

BACKGROUND = (0, 150, 110)
FRAME = (255, 255, 255)


def edge_row(predictor: Predictor, photograph: Path, cell: int) -> list[np.ndarray]:
    """Returns the five images of a photograph, uint8 [cell, cell, 3] each."""
    image, _ = read_srgb(photograph)
    smallest = min(image.shape[:2])
    if smallest < cell:
        raise SystemExit(f"{photograph}: its sides are shorter than the cell, {cell} pixels")
    guided = predictor.cutout(image)
    edge = cv2.Canny(np.where(guided[..., 3] >= 128, np.uint8(255), np.uint8(0)), 100, 200).astype(np.float32)
    # The mean over each square that lies in the image.
    means = cv2.boxFilter(edge, -1, (cell, cell), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    means = means[: image.shape[0] - cell + 1, : image.shape[1] - cell + 1]
    top, left = np.unravel_index(means.argmax(), means.shape)
    box = np.s_[top : top + cell, left : left + cell]
    shown = image.copy()
    cv2.rectangle(shown, (int(left), int(top)), (int(left) + cell - 1, int(top) + cell - 1), FRAME, 3)
    whole = ImageOps.pad(Image.fromarray(shown), (cell, cell), color=FRAME)
    cutouts = [
        predictor.cutout(image, background=BACKGROUND),
        predictor.cutout(image, background=BACKGROUND, matting=True),
        predictor.cutout(image, background="blur", matting=True),
    ]
    return [np.asarray(whole), *(part[box] for part in (image, *cutouts))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the edges of cut-outs at full resolution.")
    parser.add_argument("photographs", type=Path, help="a folder")
    parser.add_argument("sheet", type=Path, help="the image to write")
    parser.add_argument("--cell", type=int, default=200, help="side of each image, pixels (default 200)")
    arguments = parser.parse_args()
    predictor = load()
    rows = [edge_row(predictor, file, arguments.cell) for file in sorted(arguments.photographs.iterdir())]
    half = (len(rows) + 1) // 2
    rows += [[np.full_like(rows[0][0], 255)] * 5] * (2 * half - len(rows))
    columns = [np.stack(column) for part in (rows[:half], rows[half:]) for column in zip(*part, strict=True)]
    Image.fromarray(tile(columns)).save(arguments.sheet, quality=80, method=6)


if __name__ == "__main__":
    main()
