"""What is made of an image and the network's answer: the kinds of pictures, how they are to look, and the picture."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from purinet_jax.data.images import read_srgb
from purinet_jax.errors import InputError
from purinet_jax.prediction.cutouts import binary_mask, composite, cutout, overlay
from purinet_jax.prediction.refine import refined_strips, released_map

Kind = Literal["map", "mask", "cutout", "overlay", "attention"]

KINDS: tuple[Kind, ...] = ("map", "mask", "cutout", "overlay", "attention")
"""What can be made of an image; the first is the default."""


@dataclass(frozen=True, eq=False)
class Style:
    """What is made of an image.

    Attributes:
      kind: "map" (grey), "mask" (black and white), "cutout" (with alpha, or on a background), "overlay" (tinted), or
        "attention" (panels: image, map, promotion, rectification, error; at most as large as the network's square).
      threshold: the saliency in (0, 1) from which a mask is white, and at which a cut-out is half transparent.
      background: what cut-outs are put on: red, green, blue, or an image uint8 [height, width, 3].
      refine: whether edges follow the image's (`purinet_jax.prediction.refine`); without, maps are those of the
        authors' code.
      ending: the format where a picture goes to the standard output.
    """

    kind: Kind = "map"
    threshold: float = 0.5
    background: tuple[int, int, int] | np.ndarray | None = None
    refine: bool = True
    ending: str = ".png"

    @property
    def needs_image(self) -> bool:
        """Whether a picture is made of more than the network's answer and square."""
        return self.kind in ("cutout", "overlay") or (self.kind in ("map", "mask") and self.refine)


def render(
    style: Style,
    answer: Any,
    square: np.ndarray,
    shape: Sequence[int],
    image: np.ndarray | None,
    alpha: np.ndarray | None = None,
) -> np.ndarray:
    """The picture of one image.

    Args:
      style: what to make.
      answer: the network's, of the square: of `Predictor.square_finest_maps` for "attention", otherwise of
        `Predictor.square_maps`.
      square: uint8 [size, size, 3], the image as the network saw it.
      shape: height and width of the image (and more), pixels.
      image: uint8 [height, width, 3]; not needed for "attention", nor for "map" and "mask" without `refine`.
      alpha: the image's own, uint8 [height, width].

    Returns:
      uint8 [height, width] for "map" and "mask", [height, width, 4] for a cut-out without background, else
      [height, width, 3]; all of the image's size but "attention".
    """
    if style.kind == "attention":
        from purinet_jax.network.panels import attention_panel  # here, because it imports JAX

        return attention_panel(square, answer, shape)
    if style.refine and max(shape[:2]) > len(square):
        assert image is not None
        saliency = _refined_levels(answer, square, image)
    else:
        saliency = released_map(answer, shape)
    if style.kind == "map":
        return saliency
    if style.kind == "mask":
        return binary_mask(saliency, style.threshold)
    assert image is not None
    if style.kind == "overlay":
        return overlay(image, saliency)
    picture = cutout(image, saliency, alpha, style.threshold)
    return picture if style.background is None else composite(picture, style.background)


def _refined_levels(saliency: np.ndarray, square: np.ndarray, image: np.ndarray) -> np.ndarray:
    """`refine_map` rounded to 256 levels, uint8 [height, width], without the map of floats in between."""
    levels = np.empty(image.shape[:2], np.uint8)
    for rows, strip in refined_strips(saliency, square, image):
        levels[rows] = strip * 255 + 0.5
    return levels


def read_background(text: str) -> tuple[int, int, int] | np.ndarray:
    """A background for cut-outs: an image's file, or else a colour as `read_colour` takes it.

    Raises:
      InputError: it is neither.
    """
    if os.path.exists(text):
        return read_srgb(text)[0]
    colour = read_colour(text)
    if colour is None:
        raise InputError(f"{text}: neither an image's file nor a colour")
    return colour


def read_colour(text: str) -> tuple[int, int, int] | None:
    """Red, green and blue of a colour as CSS writes it (white, #80ff00, rgb(0, 90, 0)); None where it is none."""
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        return None
    return (red, green, blue) if max(red, green, blue) < 256 else None
