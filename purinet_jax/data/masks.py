"""Finds out how a set of masks is coded, and reads masks accordingly.

Files do not say whether 2 is a class or nearly black, so a set's masks are looked at together: grey (the usual, where
half is the threshold), class labels, colours on black, or alpha.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from purinet_jax.data.images import decode, has_colours, slight_differences, stored_grey, to_grey
from purinet_jax.errors import InputError

logger = logging.getLogger(__name__)

# Masks that are looked at, and pixels in all, before a set is used; reading each of 10,000 twice would take too long.
_SAMPLES = 64
_PIXELS = 100_000_000

# Class labels have small values and are few. A grey value is object from half on.
_LABELS = 32
_FEW = 32
_HALF = 128

# Of 255 (void) and of labels next to it, the rarer are noise in a grey mask if they are this much rarer.
_NOISE = 16


@dataclass(frozen=True)
class Coding:
    """How a set's masks are coded, as `understand` found it.

    Attributes:
      kind: "grey", "labels" (all above 0 are object), "colour" (all but black is object) or "alpha".
      labels: the values that are object, if the user named them; `kind` is "labels" then.
    """

    kind: Literal["grey", "labels", "colour", "alpha"] = "grey"
    labels: tuple[int, ...] = ()

    def read(self, source: str | Path | bytes, name: str | None = None) -> np.ndarray:
        """Reads a mask file as uint8 [height, width], 0 (background) to 255 (object); arguments as of `read_rgb`.

        Raises:
          InputError: as `read_grey`, or the file is coded in another way than the set's others.
        """
        image, name = decode(source, name)
        if self.labels:
            return np.where(np.isin(_label_values(image, name), self.labels), np.uint8(255), np.uint8(0))
        if self.kind == "alpha" and image.has_transparency_data:
            return _alpha(image)
        if self.kind == "colour" and image.mode not in _GREY_MODES:
            return _colour_values(image)
        if self.kind == "labels":
            wide = image.mode.startswith("I")
            values = np.asarray(image) if wide else stored_grey(image, name)
            if not wide and ((values >= _HALF) & (values < 255)).any():
                raise InputError(f"{name}: holds grey values, but the set's other masks hold class labels")
            return np.where(values > 0, np.uint8(255), np.uint8(0))
        return to_grey(image, name)


GREY = Coding()
"""The usual coding: 255 is object, and half is the threshold."""

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "F")


@dataclass
class _Seen:
    """What the masks that were looked at hold.

    Attributes:
      kinds: how many masks were seen ("all"), have alpha that varies ("alpha"), and hold colours ("colour").
      palette: why a mask that is a palette of several classes cannot be used, if there is one.
      values: how many pixels have each grey value, in masks that are grey and hold more than zeros and ones.
      ones: how many pixels have the value 1 in masks of zeros and ones, which are object in any case.
      most: the most values that a mask holds.
      wide: the values of masks of 16 bits that are few and do not reach the brightest.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    palette: str = ""
    ones: int = 0
    values: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    most: int = 0
    wide: set[int] = field(default_factory=set)

    def listed(self) -> list[int]:
        """Returns all grey values that were seen, sorted."""
        return sorted({*np.flatnonzero(self.values).tolist(), *self.wide, *([1] if self.ones else [])})

    def add(self, image: Image.Image, name: str) -> None:
        """Adds a mask. Raises InputError if it cannot be used."""
        self.kinds["all"] += 1
        if image.has_transparency_data:
            alpha = _alpha(image)
            self.kinds["alpha"] += bool(alpha.min() != alpha.max())
        if image.mode not in _GREY_MODES and has_colours(image):
            if image.mode == "P" and not self.palette:
                self.palette = _several_classes(image, name)
            self.kinds["colour"] += 1
            return
        if image.mode.startswith("I"):
            wide = np.unique(np.asarray(image)).tolist()
            if 255 < wide[-1] < 1 << 15 and len(wide) <= _FEW and wide[-1] + 1 not in (1 << 10, 1 << 12, 1 << 14):
                self.wide.update(wide)
                return
        counts = np.bincount(stored_grey(image, name).ravel(), minlength=256)
        if counts[2:].any():
            self.values += counts
            self.most = max(self.most, int(np.count_nonzero(counts)))
        elif image.mode != "1":
            self.values[0] += counts[0]
            self.ones += int(counts[1])


def understand(
    path: str | Path,
    masks: Sequence[str],
    read: Callable[[str], bytes],
    object_labels: Sequence[int] = (),
) -> Coding:
    """Finds out how a set's masks are coded, and says so in the log unless they are grey.

    Args:
      path: the data set's path, for messages.
      masks: the masks' paths inside.
      read: returns a mask's bytes by its path inside.
      object_labels: the values that are object, if the user named them.

    Raises:
      InputError: the masks' coding is ambiguous; no mask holds an object, or all masks hold nothing else.
    """
    # Spread evenly, and in random order for the search for an object.
    order = [masks[index] for index in np.random.default_rng(0).permutation(len(masks))]
    seen, images, pixels = _Seen(), 0, 0
    for member in order[: _SAMPLES if not object_labels else 0]:
        try:
            image, name = decode(read(member), f"{path}/{member}")
            seen.add(image, name)
        except InputError:
            continue  # raised when the mask is read
        images, pixels = images + 1, pixels + image.width * image.height
        if pixels > _PIXELS:
            break
    coding = Coding("labels", tuple(object_labels)) if object_labels else _decide(path, seen)
    said = _described(coding, seen)
    _check_both(path, order, read, coding, said)
    if said:
        _say_once(f"{path}: masks: {said}")
    return coding


def _decide(path: str | Path, seen: _Seen) -> Coding:
    if seen.kinds["alpha"] and 2 * seen.kinds["alpha"] >= seen.kinds["all"]:
        return Coding("alpha")
    if seen.palette:
        raise InputError(seen.palette)
    if seen.kinds["colour"]:
        return Coding("colour")
    values = seen.values
    if seen.most > _FEW:
        return GREY
    if not values[_HALF:].any():
        return Coding("labels") if values[1:].any() or seen.ones or seen.wide else GREY
    small, void = values[1:_LABELS].sum(), values[255]
    if not small or not void or values[_LABELS:255].any() or small * _NOISE <= void:
        return GREY
    if small >= void:
        return Coding("labels")
    raise InputError(
        f"{path}: masks of the values {_listed(seen.listed())}, which are grey, or class labels with 255 as "
        "void; name the object's labels, such as --object-labels 255"
    )


def _described(coding: Coding, seen: _Seen) -> str:
    """Returns what was understood, in words; nothing for grey."""
    if coding.labels:
        return f"{_listed(coding.labels)} {_is(coding.labels)} the object, as --object-labels says"
    if coding.kind == "labels":
        values = seen.listed()
        objects = [value for value in values if value > 0]
        void = "; if 255 is void, name the others by --object-labels" if 255 in objects and len(objects) > 1 else ""
        return f"labels {_listed(values)}, {_listed(objects)} {_is(objects)} the object{void}"
    return {
        "colour": "in colour, all that is not black is the object",
        "alpha": "alpha that varies, which is the mask; colours are not looked at",
        "grey": "",
    }[coding.kind]


def _check_both(
    path: str | Path, order: Sequence[str], read: Callable[[str], bytes], coding: Coding, said: str
) -> None:
    """Raises InputError unless the masks hold both object and background. Reads no more than needed to know."""
    found: set[bool] = set()
    problem = None
    for member in order:
        try:
            values = coding.read(read(member), f"{path}/{member}")
        except InputError as error:
            problem = problem or error
            continue  # raised when the mask is used
        found |= {bool(values.max() >= _HALF), bool(values.min() >= _HALF)}
        if len(found) == 2:
            return
    if not found and problem and coding.labels:
        raise problem
    if found:
        lacking = "every pixel of every mask is object" if True in found else "no mask holds an object"
        raise InputError(
            f"{path}: {lacking}, in {len(order):,} mask{'s' * (len(order) > 1)} read as {said or 'grey, cut at half'}"
            + ("" if coding.labels else "; if their values are labels, name the object's by --object-labels")
        )


def _alpha(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _colour_values(image: Image.Image) -> np.ndarray:
    """Returns 255 where any channel is not black."""
    colours = np.asarray(image.convert("RGBA"))[..., :3]
    return np.where(colours.max(-1) > slight_differences(image), np.uint8(255), np.uint8(0))


def _several_classes(image: Image.Image, name: str) -> str:
    """Returns why a palette is ambiguous; "" if it has one colour and black alone, with the index 1 or 0."""
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    labels = [label for label in np.unique(np.asarray(image)).tolist() if 0 < label < 255]
    if max(labels, default=0) <= 1 and len(np.unique(palette[palette.any(1)], axis=0)) == 1:
        return ""
    example = ",".join(map(str, labels[:3])) or "255"
    return f"{name}: a palette of several classes; name those that are the object, such as --object-labels {example}"


def _label_values(image: Image.Image, name: str) -> np.ndarray:
    """Returns the values as stored, of a palette its indices, [height, width]."""
    if image.mode in ("P", "1"):
        return np.asarray(image, np.uint8)
    if image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "L":
        return np.asarray(image)
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0]
    if image.mode in ("RGB", "RGBA") and not has_colours(image):
        return np.asarray(image)[..., 0]
    raise InputError(f"{name}: labels are whole numbers or a palette's indices, but this holds other values")


def _listed(values: Sequence[int] | np.ndarray) -> str:
    words = [str(value) for value in values]
    if len(words) > 6:
        words = [*words[:3], "…", words[-1]]
        return ", ".join(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _is(values: Sequence[int] | np.ndarray) -> str:
    return "is" if len(values) == 1 else "are"


# A command may open a set twice.
_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        logger.info("%s", line)
