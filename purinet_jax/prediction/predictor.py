"""Load a network and predict saliency maps.

Each image is resized to the network's square, only the finest map is computed, and it is resized to the image: by
guided upsampling (`load().predict(…)`), or as the authors' released code does it, for evaluation (`predict_stream`).
"""

import functools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import jax
import numpy as np
from jax import Array, export
from jax.stages import Compiled, Wrapped
from PIL import Image

from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import read_srgb, to_alpha, to_png, to_rgb, to_srgb
from purinet_jax.errors import InputError
from purinet_jax.network.cpu.platform import compile_forward_pass
from purinet_jax.network.folding import apply_folds, find_folds
from purinet_jax.prediction.backgrounds import read_background
from purinet_jax.prediction.cutouts import visible
from purinet_jax.prediction.inputs import refuse_address
from purinet_jax.prediction.refine import refine_map, released_map, resize_map
from purinet_jax.prediction.rendering import CutoutOptions, Style, render, style_metadata
from purinet_jax.prediction.stream import SquareImage, checked_size, inference_stream
from purinet_jax.weights.shipped import Traced, load_shipped, load_traced, shipped_name

if TYPE_CHECKING:  # imports Flax, which the package's traced networks do without
    from purinet_jax.network.model import Maps, PurNet

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Array
"""A path, a file's bytes, a Pillow image, or an array: uint8 [height, width, 3] (RGB), [height, width, 4] (RGBA) or
[height, width] (grey)."""

ImageList = list[ImageLike] | tuple[ImageLike, ...]


class Predictor:
    """A network with its weights, ready for images; see `load`. It can be pickled; compiled programs are left out.

    Attributes:
      model: the network.
      variables: `{"params": …, "batch_stats": …}`, as trained.
      size: side of the square that images are resized to, pixels. The released network's is 320.
    """

    def __init__(
        self,
        model: "PurNet | Mapping[str, Any]",
        variables: Mapping[str, Any],
        size: int = 320,
        traced: Traced | None = None,
    ) -> None:
        """Takes the attributes; `model` may be its configuration, to build it at its first use, and `traced` is the
        network's traced program for these variables, if there is one."""
        self._model_or_config = model
        self.variables = variables
        self.size = size
        self._traced = traced

    def __getstate__(self) -> dict[str, Any]:
        """Returns what `__init__` takes; the rest is computed again where it is used."""
        return {name: self.__dict__[name] for name in ("_model_or_config", "variables", "size", "_traced")}

    @functools.cached_property
    def model(self) -> "PurNet":
        """The network."""
        if not isinstance(self._model_or_config, Mapping):
            return self._model_or_config
        from purinet_jax.network.config import ModelConfig

        return ModelConfig.from_dict(self._model_or_config).build()

    @functools.cached_property
    def folded(self) -> Mapping[str, Any]:
        """The variables with BatchNorm folded (`fold_batchnorm`), on the first device; computed at the first use."""
        folds = find_folds(self.model, self.variables) if self._traced is None else self._traced.folds
        return jax.device_put(apply_folds(folds, self.variables))

    @functools.cached_property
    def _compiled(self) -> Callable[[Mapping[str, Any], np.ndarray], Array] | None:
        """The traced program, compiled; None if there is none that JAX can use here."""
        if self._traced is None:
            return None
        images = jax.ShapeDtypeStruct((1, self._traced.size, self._traced.size, 3), np.uint8)
        try:
            program = export.deserialize(bytearray(self._traced.program))
            if jax.default_backend() not in program.platforms:
                return None
            return compile_forward_pass(jax.jit(program.call).lower(self.folded, images))
        except Exception:  # of many types, where JAX's version does not suit the program's
            return None

    @overload
    def predict(self, images: ImageLike, size: int | None = None, refine: bool = True) -> np.ndarray: ...

    @overload
    def predict(self, images: ImageList, size: int | None = None, refine: bool = True) -> list[np.ndarray]: ...

    def predict(
        self, images: ImageLike | ImageList, size: int | None = None, refine: bool = True
    ) -> np.ndarray | list[np.ndarray]:
        """Finds the salient objects in one image or in each image of a list.

        Args:
          images: an image, or a list or tuple of them, of any sizes. Files and their bytes are turned upright by their
            EXIF orientation and converted to sRGB (`read_srgb`); arrays and Pillow images are taken as they are.
            Transparent parts are seen on grey, and alpha multiplies the map.
          size: side of the square that images are resized to, pixels; by default `self.size`.
          refine: whether a map's edges follow those of its image if that is larger than the square
            (`purinet_jax.prediction.refine`); without, and for smaller images, maps are resized bilinearly.

        Returns:
          float32 [height, width] in [0, 1], of the image's size; a list of them for a list.

        Raises:
          InputError: a file cannot be read, an array is of another dtype or shape, or `size` is not positive.
        """
        size = checked_size(self.size if size is None else size)
        if not isinstance(images, list | tuple):
            return self._predict_batch([images], size, refine)[0]
        maps: list[np.ndarray] = []
        for start in range(0, len(images), batch_size := _list_batch_size()):
            maps += self._predict_batch(images[start : start + batch_size], size, refine)
        return maps

    def _predict_batch(self, images: Sequence[ImageLike], size: int, refine: bool) -> list[np.ndarray]:
        decoded = [_pixels(image) for image in images]
        arrays = [visible(colours, alpha) for colours, alpha in decoded]
        squares = [resize_image(array, size, size) for array in arrays]
        maps = self.square_maps(squares, len(squares))
        resize = refine_map if refine else lambda saliency, _, image: resize_map(saliency, image.shape)
        # Interpolation may leave [0, 1] by a rounding error.
        resized = [np.clip(resize(*parts), 0, 1) for parts in zip(maps, squares, arrays, strict=True)]
        return [
            saliency if alpha is None else saliency * (alpha * np.float32(1 / 255))
            for saliency, (_, alpha) in zip(resized, decoded, strict=True)
        ]

    @overload
    def cutout(self, image: str | os.PathLike[str] | Image.Image, **options: Unpack[CutoutOptions]) -> Image.Image: ...

    @overload
    def cutout(self, image: bytes, **options: Unpack[CutoutOptions]) -> bytes: ...

    @overload
    def cutout(self, image: np.ndarray | Array, **options: Unpack[CutoutOptions]) -> np.ndarray: ...

    def cutout(self, image: ImageLike, **options: Unpack[CutoutOptions]) -> Image.Image | bytes | np.ndarray:
        """Cuts the salient objects out of an image, as `purinet predict --output-kind cutout` does.

        Args:
          image: read as by `predict`, but Pillow images are also turned upright and converted to sRGB, since cut-outs
            have neither orientation nor profile.
          **options: attributes of `Style`, those of `CutoutOptions`. `background` may also be a path, a Pillow image,
            or text as of the option `--background`: an image's path, "white", "#80ff0080", "blur" or "blur:3%".

        Returns:
          For a path or Pillow image, a Pillow image, RGBA, or RGB on an opaque background; for bytes, those of a PNG
          file, with the metadata that cut-outs keep; for an array, uint8 [height, width, 4 or 3].

        Raises:
          InputError: as `predict`, or an option is out of range.
          TypeError: there is no such option.
        """
        if unknown := options.keys() - CutoutOptions.__annotations__.keys():
            known = ", ".join(CutoutOptions.__annotations__)
            raise TypeError(f"cutout() got an unexpected keyword argument '{min(unknown)}'; there are {known}")
        background = options.get("background")
        if isinstance(background, str):
            options["background"] = read_background(background)
        elif isinstance(background, os.PathLike | Image.Image):
            behind, opacity = _file_pixels(background)
            options["background"] = behind if opacity is None else np.dstack([behind, opacity])
        style = Style("cutout", **options)  # type: ignore[arg-type]  # no text any more
        size = checked_size(self.size)
        colours, alpha = _file_pixels(image)
        shown = visible(colours, alpha)
        square = resize_image(shown, size, size)
        (saliency,) = self.square_maps([square], 1)
        rendering = render(style, saliency, square, colours.shape, colours, alpha, shown)
        if isinstance(image, bytes):
            return to_png(rendering, metadata=style_metadata(style, image))
        return Image.fromarray(rendering) if isinstance(image, str | os.PathLike | Image.Image) else rendering

    def square_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Predicts the maps of square images, without resizing.

        Args:
          images: at most `batch_size` arrays uint8 [size, size, 3], all of one size.
          batch_size: fewer images are padded to it, so that one program is compiled.

        Returns:
          float32 [images, size, size] in [0, 1].
        """
        batch = _padded(images, batch_size)
        if self._traced is not None and batch.shape[:2] == (1, self._traced.size) and self._compiled is not None:
            return np.asarray(self._compiled(self.folded, batch))
        from purinet_jax.network.inference import saliency_maps

        return np.asarray(self._run(saliency_maps, batch))[: len(images)]

    def square_finest_maps(self, images: Sequence[np.ndarray], batch_size: int) -> "list[Maps]":
        """Predicts all maps of the finest level: arguments as of `square_maps` → for each image, `Maps` of one float32
        [1, size, size, 1] each."""
        from purinet_jax.network.inference import finest_maps

        maps = jax.tree.map(np.asarray, self._run(finest_maps, _padded(images, batch_size)))
        return [jax.tree.map(itemgetter(slice(index, index + 1)), maps) for index in range(len(images))]

    def _run(self, function: Any, batch: np.ndarray) -> Any:
        """Calls a jitted function of model, variables and images."""
        return _program(function, self.model, self._shapes, batch.shape)(self.folded, batch)

    @functools.cached_property
    def _shapes(self) -> tuple[Any, ...]:
        leaves, structure = jax.tree.flatten(self.folded)
        return structure, *(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)


@functools.cache
def _program(function: Wrapped, model: "PurNet", variables: tuple[Any, ...], batch: tuple[int, ...]) -> Compiled:
    """Compiles a function for the shapes of the variables (structure, then leaves) and of the batch (uint8)."""
    structure, *leaves = variables
    shapes = jax.tree.unflatten(structure, leaves)
    return compile_forward_pass(function.lower(model, shapes, jax.ShapeDtypeStruct(batch, np.uint8)))


def load(path: str | os.PathLike[str] | None = None, size: int | None = None) -> Predictor:
    """Loads a network from a file, a training run or the package.

    Args:
      path: this package's `.safetensors` or `.npz` file; the authors' `.pth`, or their tensors in one of those two; the
        folder of a training run, or of one of its checkpoints; or the name of a network that comes with the package
        ("context", the default, or "lite").
      size: side in pixels that images are resized to; by default that of the run, or what the file says, or 320.

    Raises:
      InputError: there is no such file, folder or network, it cannot be used, or it holds only a backbone.
    """
    if (name := shipped_name(path)) is not None:
        shipped = load_shipped(name)
        return Predictor(shipped.config, shipped.variables, size or shipped.size, load_traced(name))
    assert path is not None
    from purinet_jax.network.config import ModelConfig
    from purinet_jax.weights.files import load_file, stored_size

    variables, config = load_file(path)
    if not isinstance(config, ModelConfig):
        raise InputError(f"{path}: holds the backbone {config.backbone} alone, which cannot predict maps")
    return Predictor(config.build(), variables, size or stored_size(path) or 320)


@overload
def remove_background(image: str | os.PathLike[str] | Image.Image, **options: Unpack[CutoutOptions]) -> Image.Image: ...


@overload
def remove_background(image: bytes, **options: Unpack[CutoutOptions]) -> bytes: ...


@overload
def remove_background(image: np.ndarray | Array, **options: Unpack[CutoutOptions]) -> np.ndarray: ...


def remove_background(image: ImageLike, **options: Unpack[CutoutOptions]) -> Image.Image | bytes | np.ndarray:
    """Cuts the salient objects out of an image with the package's network `context`, which is loaded at the first call.

    Arguments, results and errors are those of `Predictor.cutout`.
    """
    return _default().cutout(image, **options)


@functools.cache
def _default() -> Predictor:
    return load()


def predict_stream(
    predictor: Predictor, count: int, read: Callable[[int], np.ndarray], *, batch_size: int
) -> Generator[np.ndarray | InputError]:
    """Predicts on `count` images as the authors' released code does; a few batches are in memory at any time.

    Args:
      predictor: the network.
      count: how many images; they go by index, from 0.
      read: index → the image, uint8 [height, width, 3]. Called in threads, ahead of the device.
      batch_size: how many images the network takes at once, at least 1.

    Yields:
      For each image, in order, the map uint8 [height, width] as the authors' files hold it, or the InputError that
      `read` raised. Close the generator if it may not be exhausted.

    Raises:
      InputError: `batch_size` or the predictor's size is not positive.
    """
    size = checked_size(predictor.size)

    def read_square(index: int) -> SquareImage:
        image = read(index)
        return SquareImage(resize_image(image, size, size), image.shape)

    def resize(_: int, saliency: np.ndarray, image: SquareImage) -> np.ndarray:
        return released_map(saliency, image.shape)

    yield from inference_stream(predictor.square_maps, count, read_square, resize, batch_size=batch_size)


def _list_batch_size() -> int:
    """How many images of a list the network takes at once: 1 on CPUs, where batches save no time."""
    return 1 if jax.default_backend() == "cpu" else 8


def _file_pixels(image: ImageLike) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns what `_pixels` does, of Pillow images what it would of their files."""
    return to_srgb(image, "image") if isinstance(image, Image.Image) else _pixels(image)


def _pixels(image: ImageLike) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns an image as uint8 [height, width, 3], and its alpha uint8 [height, width] unless it is opaque."""
    if isinstance(image, bytes):
        return read_srgb(image)
    if isinstance(image, str | os.PathLike):
        refuse_address(os.fspath(image))
        return read_srgb(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image, "image"), to_alpha(image, "image")
    if not isinstance(image, np.ndarray | Array):
        raise InputError(f"image: must be a path, bytes, a Pillow image or an array, not {type(image).__name__}")
    array = np.asarray(image)
    grey = array.ndim == 2
    if array.dtype != np.uint8 or array.size == 0 or not (grey or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(
            "image: an array must be uint8 [height, width, 4], [height, width, 3] or [height, width], "
            f"not {array.dtype} {list(array.shape)}"
        )
    if grey:
        return np.repeat(array[:, :, None], 3, axis=2), None
    alpha = np.ascontiguousarray(array[..., 3]) if array.shape[2] == 4 and array[..., 3].min() < 255 else None
    return np.ascontiguousarray(array[..., :3]), alpha


def _padded(images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Stacks square images, followed by black ones up to `batch_size`."""
    batch = np.zeros((batch_size, *images[0].shape), np.uint8)
    batch[: len(images)] = images
    return batch
