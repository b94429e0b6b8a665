"""Render predictions as images: maps, masks, cut-outs, overlays and attention panels."""

import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar, get_args

import numpy as np
from PIL import Image

from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import count_pixels, read_metadata, read_srgb
from purinet_jax.errors import InputError
from purinet_jax.prediction.backgrounds import Background, Blur, check_background
from purinet_jax.prediction.cleaning import clean
from purinet_jax.prediction.cutouts import (
    binary_mask,
    composite,
    cutout,
    multiply,
    on_blur,
    overlay,
    visible,
    with_alpha,
)
from purinet_jax.prediction.matting import matte
from purinet_jax.prediction.refine import refined_strips, released_map
from purinet_jax.prediction.stream import SquareImage, checked_size, inference_stream

if TYPE_CHECKING:
    from purinet_jax.prediction.predictor import Predictor

Kind = Literal["map", "mask", "cutout", "overlay", "attention"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of output; the first is the default."""

_Delivered = TypeVar("_Delivered")

# Larger images are in memory one at a time, and are read again when their map is ready.
_LARGE_PIXELS = 1 << 24
_large_image = threading.Lock()


@dataclass(frozen=True, eq=False)
class Style:
    """How an image and its prediction are rendered.

    Attributes:
      kind: "map" (grey), "mask" (black and white), "cutout" (with alpha, or on a background), "overlay" (tinted), or
        "attention" (panels: image, map, promotion, rectification, error; at most as large as the network's square).
      threshold: the saliency in (0, 1) from which a mask is white, and at which a cut-out is half transparent.
      background: of cut-outs: red, green, blue, or an image uint8 [rows, columns, 3]; either may have alpha as well; or
        the image's own, blurred.
      refine: whether edges follow the image's (`purinet_jax.prediction.refine`); without, maps are those of the
        authors' code.
      ending: the format where no file name gives it (standard output, Ray).
      keep_largest: whether only the largest connected part of the map at the threshold is kept.
      min_area: share of the image's area, in [0, 1), below which connected parts at the threshold are removed.
      fill_holes: whether parts below the threshold that the object encloses become part of it.
      matting: whether cut-outs' alpha is estimated from the image at hair and fur (`purinet_jax.prediction.matting`).
      smooth: whether maps of videos are steadied over frames (`purinet_jax.prediction.smoothing`).
    """

    kind: Kind = "map"
    threshold: float = 0.5
    background: Background | None = None
    refine: bool = True
    ending: str = ".png"
    keep_largest: bool = False
    min_area: float = 0.0
    fill_holes: bool = False
    matting: bool = False
    smooth: bool = False

    def __post_init__(self) -> None:
        """Raises InputError if a value is out of range or does not suit the kind."""
        if self.kind not in KINDS:
            raise InputError(f"kind: must be one of {', '.join(KINDS)}, not {self.kind}")
        for name in ("threshold", "min_area"):
            if not isinstance(value := getattr(self, name), Real):
                raise InputError(f"{name}: must be a number, not {value!r}")
        for name in ("refine", "keep_largest", "fill_holes", "matting", "smooth"):
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise InputError(f"{name}: must be True or False, not {value!r}")
        if not 0 < self.threshold < 1:
            raise InputError(f"threshold: must be between 0 and 1, not {self.threshold}")
        if not 0 <= self.min_area < 1:
            raise InputError(f"min_area: must be at least 0 and below 1 (100%), not {self.min_area}")
        if self.kind != "cutout":
            for name, given in {"background": self.background is not None, "matting": self.matting}.items():
                if given:
                    raise InputError(f"{name}: is for cutout, not {self.kind}")
        if self.kind == "attention":
            for name in ("keep_largest", "min_area", "fill_holes"):
                if getattr(self, name):
                    raise InputError(f"{name}: is not for attention")
        check_background(self.background)

    @property
    def needs_image(self) -> bool:
        """Whether rendering needs the image at its own size."""
        return self.kind in ("cutout", "overlay") or (self.kind in ("map", "mask") and self.refine)

    @property
    def transparent(self) -> bool:
        """Whether renderings have an alpha channel."""
        if self.kind != "cutout" or self.background is None:
            return self.kind == "cutout"
        if isinstance(self.background, Blur):
            return False
        channels = self.background.shape[2] if isinstance(self.background, np.ndarray) else len(self.background)
        return channels == 4


class CutoutOptions(TypedDict, total=False):
    """The attributes of `Style` that are options of `Predictor.cutout`."""

    threshold: float
    background: Background | str | os.PathLike[str] | Image.Image | None
    refine: bool
    keep_largest: bool
    min_area: float
    fill_holes: bool
    matting: bool


def render(
    style: Style,
    prediction: Any,
    square: np.ndarray,
    shape: Sequence[int],
    image: np.ndarray | None,
    alpha: np.ndarray | None = None,
    shown: np.ndarray | None = None,
) -> np.ndarray:
    """Renders the prediction of one image.

    Args:
      style: what to render.
      prediction: of the square, by `Predictor.square_finest_maps` for "attention", otherwise by
        `Predictor.square_maps`.
      square: uint8 [size, size, 3], the image as the network saw it: `visible` and resized.
      shape: (height, width, …) of the image.
      image: uint8 [height, width, 3]; may be None unless `style.needs_image`.
      alpha: the image's own, uint8 [height, width]. Maps, masks and overlays are made of what it leaves visible.
      shown: `visible(image, alpha)`, if the caller has it.

    Returns:
      uint8 [height, width] for "map" and "mask", [height, width, 4] if `style.transparent`, else [height, width, 3];
      all but "attention" have the image's size.
    """
    if style.kind == "attention":
        from purinet_jax.network.panels import attention_panel  # here, because it imports JAX

        return attention_panel(square, prediction, shape)
    if shown is None and image is not None:
        shown = visible(image, alpha)
    if style.refine and max(shape[:2]) > len(square):
        assert shown is not None
        saliency = _refined_levels(prediction, square, shown)
    else:
        saliency = released_map(prediction, shape)
    clean(saliency, style.threshold, style.keep_largest, style.min_area, style.fill_holes)
    if style.kind == "map":
        return multiply(saliency, alpha)
    if style.kind == "mask":
        return binary_mask(multiply(saliency, alpha), style.threshold)
    assert image is not None
    assert shown is not None
    if style.kind == "overlay":
        return overlay(shown, multiply(saliency, alpha))
    if alpha is not None:
        image = np.where(alpha[..., None] > 0, image, shown)  # so that hidden colours do not spread
    if style.matting:
        colours, opacity = matte(image, saliency, style.threshold)
        rgba = with_alpha(colours, multiply(opacity, alpha))
    else:
        rgba = cutout(image, saliency, alpha, style.threshold)
    if isinstance(style.background, Blur):
        return on_blur(rgba, image, alpha, style.background.strength)
    return rgba if style.background is None else composite(rgba, style.background)


def _refined_levels(saliency: np.ndarray, square: np.ndarray, image: np.ndarray) -> np.ndarray:
    """`refine_map` rounded to 256 levels, uint8 [height, width], without the float map in memory."""
    levels = np.empty(image.shape[:2], np.uint8)
    for rows, strip in refined_strips(saliency, square, image):
        levels[rows] = strip * 255 + 0.5
    return levels


def check_style(predictor: "Predictor", style: Style) -> None:
    """Raises InputError if the network lacks what the style shows, or its size is not positive."""
    checked_size(predictor.size)
    if style.kind == "attention" and not predictor.model.attention:
        raise InputError("attention: this network has none (it is that of stage 1)")


class _Kept(NamedTuple):
    """What rendering needs of an image: image, alpha and `visible` image, if not read again, and its metadata."""

    pixels: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None] | None
    metadata: Mapping[str, Any]


def style_metadata(style: Style, data: bytes) -> dict[str, Any]:
    """Returns the metadata that a rendering of an image file keeps, for `encode`: a cut-out's, none of other kinds."""
    return read_metadata(data) if style.kind == "cutout" else {}


def render_stream(
    predictor: "Predictor",
    count: int,
    source: Callable[[int], tuple[bytes, str]],
    deliver: Callable[[int, np.ndarray, Mapping[str, Any]], _Delivered],
    style: Style,
    *,
    batch_size: int,
) -> Generator[_Delivered | InputError]:
    """Predicts on and renders `count` image files; `inference_stream` with decoding and rendering.

    Args:
      predictor: the network.
      source: index → an image file's bytes, and what errors call it. Called once more for a very large image.
      deliver: index, rendering as of `render`, and metadata for `encode` → what is yielded.
      style: what to render.
      count, batch_size: as of `inference_stream`.

    Yields, raises: as `inference_stream`; `source`, decoding and `deliver` may raise InputError.
    """

    def read(index: int) -> SquareImage:
        data, name = source(index)
        large = count_pixels(data, name) > _LARGE_PIXELS
        with _large_image if large else nullcontext():
            image, alpha = read_srgb(data, name)
            shown = visible(image, alpha)
            pixels = (image, alpha, shown) if style.needs_image else (None, alpha, None)
            reread = large and (style.needs_image or alpha is not None)
            kept = _Kept(None if reread else pixels, style_metadata(style, data))
            return SquareImage(resize_image(shown, predictor.size, predictor.size), image.shape, kept)

    def finish(index: int, prediction: Any, resized: SquareImage) -> _Delivered:
        kept: _Kept = resized.extra
        with _large_image if kept.pixels is None else nullcontext():
            image, alpha, shown = kept.pixels or (*read_srgb(*source(index)), None)
            rendering = render(style, prediction, resized.square, resized.shape, image, alpha, shown)
            del image, shown  # encoding needs the memory
            return deliver(index, rendering, kept.metadata)

    predict: Any = predictor.square_finest_maps if style.kind == "attention" else predictor.square_maps
    yield from inference_stream(predict, count, read, finish, batch_size=batch_size)
