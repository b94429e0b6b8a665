"""Backgrounds of cut-outs: colours, images and blur, also as people write them."""

import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from purinet_jax.data.images import read_srgb
from purinet_jax.errors import InputError
from purinet_jax.files import reason


@dataclass(frozen=True)
class Blur:
    """A background of cut-outs: the image's own, blurred.

    Attributes:
      strength: standard deviation of the blur, as a share in (0, 1) of the image's longer side.
    """

    strength: float = 0.02

    def __post_init__(self) -> None:
        """Raises InputError if the strength is out of range."""
        if not (isinstance(self.strength, Real) and 0 < self.strength < 1):
            raise InputError(f"blur: its strength must be between 0 and 1 (100%), not {self.strength!r}")


Background = tuple[int, ...] | np.ndarray | Blur
"""Red, green, blue and optionally alpha, 0 to 255; an image uint8 [rows, columns, 3 or 4]; or `Blur`."""


def check_background(background: Background | None) -> None:
    """Raises InputError if an array is not an image or a tuple not a colour."""
    if isinstance(background, np.ndarray):
        shape = background.shape
        if background.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (3, 4) or background.size == 0:
            wanted = "uint8 [rows, columns, 3 or 4]"
            raise InputError(f"background: an array must be {wanted}, not {background.dtype} {list(shape)}")
    elif isinstance(background, tuple) and (len(background) not in (3, 4) or not _are_levels(background)):
        raise InputError(f"background: a colour is 3 or 4 integers from 0 to 255, not {background}")
    elif not isinstance(background, tuple | Blur | None):
        raise InputError(f"background: must be a colour, an image or Blur, not {reprlib.repr(background)}")


def _are_levels(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | np.integer) and 0 <= value <= 255 for value in values)


def read_background(text: str) -> Background:
    """Returns a background for cut-outs: an image file's pixels, or else as `read_blur` or `read_colour` takes it.

    Returns:
      uint8 [rows, columns, 3], or 4 if the image is transparent in parts; the blur; or the colour.

    Raises:
      InputError: it is none of them.
    """
    if os.path.exists(text) and not os.path.isdir(text):  # a folder may have the name of a colour
        image, alpha = read_srgb(text)
        return image if alpha is None else np.dstack([image, alpha])
    background = read_blur(text) or read_colour(text)
    if background is None:
        try:
            os.stat(text)
        except PermissionError as error:
            raise InputError(f"{text}: cannot be read: {reason(error)}") from error
        except (OSError, ValueError):
            pass
        raise InputError(f"background: {text!r} is neither an image's file nor a colour nor blur")
    return background


def read_blur(text: str) -> Blur | None:
    """Returns the background that "blur", "blur:3%" or "blur:0.03" names, None for other words.

    Raises:
      InputError: its strength is no number or out of range.
    """
    word, colon, strength = text.partition(":")
    if word != "blur":
        return None
    return Blur(read_share("blur", strength)) if colon else Blur()


def read_share(name: str, text: str) -> float:
    """Returns the number of "3%" or "0.03". Raises InputError, which starts with `name`, if it is none."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise InputError(f"{name}: {text!r} is neither a percentage nor a number") from error


def read_colour(text: str) -> tuple[int, ...] | None:
    """Returns red, green and blue of a CSS colour (white, #80ff00, rgb(0, 90, 0)), and alpha unless it is opaque
    (transparent, #80ff0080, rgba(0, 90, 0, 0.5)); None if it is no colour."""
    from PIL import ImageColor

    text = text.lower()
    if text == "transparent":
        return (0, 0, 0, 0)
    try:
        if text.startswith("rgba("):  # Pillow takes alpha from 0 to 255, and CSS from 0 to 1
            rgb, _, alpha = text.rstrip(" )").rpartition(",")
            colour = *ImageColor.getrgb(f"{rgb.replace('rgba', 'rgb')})"), round(255 * read_share("alpha", alpha))
        else:
            colour = ImageColor.getrgb(text)
    except (InputError, OverflowError, ValueError):  # infinite alpha overflows
        return None
    if not _are_levels(colour):
        return None
    return colour[:3] if colour[3:] == (255,) else colour
