"""Weights and images in, saliency maps out: as arrays (`load(...).predict(...)`) or as the PNG files that the
authors' released code writes (`predict_files`). Both squash the image to the network's square, compute the
finest map alone, and resize it to the image. Files are read and written in threads beside the device.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import cv2
import jax
import numpy as np
from jax import Array
from PIL import Image

from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import read_rgb, to_png, to_rgb, write_atomically
from purinet_jax.data.pairs import images_in
from purinet_jax.errors import InputError
from purinet_jax.model import PurNet, build_model
from purinet_jax.step import normalise

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Array
"""A path, a Pillow image, or an array: uint8 [height, width, 3] (RGB) or [height, width] (grey)."""

# `Predictor.predict` takes a list in parts of this many, so that a long one does not fill the device.
_MOST_AT_ONCE = 8

_Argument = TypeVar("_Argument")
_Beside = TypeVar("_Beside")
_Result = TypeVar("_Result")


@jax.jit(static_argnums=0)
def saliency_maps(model: PurNet, variables: Mapping[str, Any], images: Array) -> Array:
    """Each image's finest map: uint8 RGB [batch, height, width, 3] → float32 [batch, height, width].

    Values are in [0, 1]. Since nothing else is returned, XLA computes neither the other levels' maps nor the
    auxiliary heads.
    """
    images = normalise(images, model.backbone.pixel_mean, model.backbone.pixel_std)
    maps: Any = model.apply(variables, images)
    return jax.nn.sigmoid(maps.saliency[0][..., 0])


@dataclass(frozen=True, eq=False)
class Predictor:
    """A network with its weights, ready for images; `load` makes one of a file.

    Attributes:
      model: the network.
      variables: `{"params": …, "batch_stats": …}`; on the device, lest they are sent there with every batch.
      size: side of the square that images are squashed to, pixels. The released network's is 320.
    """

    model: PurNet
    variables: Mapping[str, Any]
    size: int = 320

    @overload
    def predict(self, images: ImageLike, size: int | None = None) -> np.ndarray: ...

    @overload
    def predict(self, images: list[ImageLike] | tuple[ImageLike, ...], size: int | None = None) -> list[np.ndarray]: ...

    def predict(
        self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...], size: int | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Finds the salient objects in one image or in each image of a list.

        Each map is resized to its image as it left the network, in floating point. (`predict_files` rounds
        down to 256 levels first, as the authors do.)

        Args:
          images: an image, or a list or tuple of them, of any sizes. Files stand upright as their EXIF
            orientation says; arrays and Pillow images are taken as they are.
          size: side of the square that images are squashed to, pixels; the predictor's own if not given.

        Returns:
          float32 [height, width] in [0, 1], of the image's size; a list of them for a list.

        Raises:
          InputError: a file cannot be read, an array is of another dtype or shape, or `size` is not positive.
        """
        size = _checked_size(self.size if size is None else size)
        if not isinstance(images, list | tuple):
            return self._predict_some([images], size)[0]
        maps: list[np.ndarray] = []
        for start in range(0, len(images), _MOST_AT_ONCE):
            maps += self._predict_some(images[start : start + _MOST_AT_ONCE], size)
        return maps

    def _predict_some(self, images: Sequence[ImageLike], size: int) -> list[np.ndarray]:
        arrays = [_pixels(image) for image in images]
        maps = self.squashed_maps([resize_image(array, size, size) for array in arrays], len(arrays))
        # Interpolation may leave [0, 1] by a rounding error.
        return [np.clip(_resize_map(saliency, array.shape), 0, 1) for saliency, array in zip(maps, arrays, strict=True)]

    def squashed_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """The maps of squares, before they are resized.

        Args:
          images: at most `batch_size` arrays uint8 [size, size, 3], all of one size.
          batch_size: the batch is filled up to this many, since each shape is compiled for once.

        Returns:
          float32 [images, size, size] in [0, 1].
        """
        batch = np.zeros((batch_size, *images[0].shape), np.uint8)
        batch[: len(images)] = images
        return np.asarray(saliency_maps(self.model, self.variables, batch))[: len(images)]


def load(path: str | os.PathLike[str], size: int | None = None) -> Predictor:
    """Loads a network, whatever it is stored in.

    Args:
      path: this package's `.safetensors` or `.npz` file; the authors' `.pth`, or their tensors in one of
        those two; the folder of a training run, or of one of its checkpoints.
      size: side in pixels that images are squashed to; by default that of the run, or 320.

    Returns:
      A predictor with its variables on the first device.

    Raises:
      InputError: there is no such file or folder, it cannot be used, or it holds an extractor alone.
    """
    # Here, so that predicting with a network at hand does not need Orbax.
    from purinet_jax.checkpoints import load_weights, training_size

    variables, config = load_weights(Path(path))
    if "part" in config:
        raise InputError(f"{path}: holds the extractor {config['backbone']} alone, from which nothing can be predicted")
    return Predictor(build_model(config), jax.device_put(variables), size or training_size(path) or 320)


def predict_files(
    predictor: Predictor,
    paths: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    batch_size: int = 1,
    progress: bool = True,
) -> list[str]:
    """Writes each image's map as `<output>/<image's name without ending>.png`, as the authors' code does.

    That is grey, uint8 [height, width]: the map truncated to 256 levels at the network's size, then resized
    to the image. Each file appears whole or not at all, and replaces one of its name.

    Args:
      predictor: the network.
      paths: image files, and folders, whose images are taken in the order of their names (folders in them are
        not entered).
      output: the folder to write to; made if missing.
      batch_size: how many images the network takes at once.
      progress: whether to show a bar on stderr.

    Returns:
      One line for each image that could not be read, naming it; all others are done.

    Raises:
      InputError: a path does not exist or holds no image, two images would be written to one name or one over
        another, or `output` cannot be written to. Except for the last, nothing is written then.
    """
    images = images_in(*map(Path, paths))
    output = Path(output)
    files = _output_files(images, output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{output}: is a file or lies below one; maps need a folder") from error
    except OSError as error:
        raise InputError(f"{output}: cannot be made: {error.strerror or error}") from error

    def read(index: int) -> tuple[np.ndarray, None]:
        return read_rgb(images[index]), None

    def write(index: int, saliency: np.ndarray, _: None) -> None:
        write_atomically(files[index], to_png(saliency))

    failures = []
    with closing(predict_stream(predictor, len(images), read, write, batch_size=batch_size)) as results:
        for result in show_progress(results, len(images), progress):
            if isinstance(result, InputError):
                failures.append(str(result))
    return failures


@dataclass(frozen=True)
class _Squashed:
    """An image on its way: index, square uint8 [size, size, 3], own shape, and what `read` gave with it."""

    index: int
    square: np.ndarray
    shape: tuple[int, ...]
    beside: Any


_Mapped = tuple[_Squashed, np.ndarray]  # with its map, uint8 [size, size]


def predict_stream(
    predictor: Predictor,
    count: int,
    read: Callable[[int], tuple[np.ndarray, _Beside]],
    finish: Callable[[int, np.ndarray, _Beside], _Result],
    *,
    batch_size: int,
) -> Generator[_Result | InputError]:
    """Predicts on `count` images, of which a few batches are in memory at any time.

    Args:
      predictor: the network.
      count: how many images; they go by index, from 0.
      read: index → the image, uint8 [height, width, 3], and anything that `finish` shall be given. Called in
        threads, ahead of the device.
      finish: index, the map uint8 [height, width] as the authors' files hold it, and what `read` gave → a
        result. Called in threads, behind the device.
      batch_size: how many images the network takes at once, at least 1.

    Yields:
      The results in the images' order, and in between the InputError of each image that `read` could not
      read. Close the generator where it may not be run to its end.

    Raises:
      InputError: `batch_size` or the predictor's size is not positive, or `finish` raised it.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: must be at least 1, not {batch_size}")
    batch_size = min(batch_size, max(count, 1))
    size = _checked_size(predictor.size)

    def squash(index: int) -> _Squashed | InputError:
        try:
            image, beside = read(index)
        except InputError as error:
            return error
        return _Squashed(index, resize_image(image, size, size), image.shape, beside)

    def with_maps(squashed: Iterable[_Squashed | InputError]) -> Iterator[_Mapped | InputError]:
        batch: list[_Squashed] = []
        for image in squashed:
            if isinstance(image, InputError):
                yield image
                continue
            batch.append(image)
            if len(batch) == batch_size:
                yield from on_device(batch)
                batch = []
        if batch:
            yield from on_device(batch)

    def on_device(batch: list[_Squashed]) -> Iterator[_Mapped]:
        maps = predictor.squashed_maps([image.square for image in batch], batch_size)
        return zip(batch, (maps * 255).astype(np.uint8), strict=True)

    def complete(image: _Mapped | InputError) -> _Result | InputError:
        if isinstance(image, InputError):
            return image
        squashed, saliency = image
        return finish(squashed.index, _resize_map(saliency, squashed.shape), squashed.beside)

    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="purinet")
    try:
        squashed = _ahead(pool, squash, range(count), 2 * batch_size + threads)
        yield from _ahead(pool, complete, with_maps(squashed), batch_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[_Argument], _Result],
    arguments: Iterable[_Argument],
    ahead: int,
) -> Iterator[_Result]:
    """`function` of each argument, in order, up to `ahead` of them under way in the pool or waiting."""
    waiting: deque[Future[_Result]] = deque()
    for argument in arguments:
        waiting.append(pool.submit(function, argument))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def show_progress(results: Iterable[_Result], count: int, progress: bool) -> Iterable[_Result]:
    """`results`, of which there are `count`, with a bar on stderr if `progress`."""
    from tqdm import tqdm

    return tqdm(results, total=count, desc="predicting", unit="image", disable=not progress)


def _output_files(images: Sequence[Path], output: Path) -> list[Path]:
    """Where each image's map goes. Raises InputError where that is another one's place, or an image's."""
    sources = {image.resolve(): image for image in images}
    claimed: dict[Path, Path] = {}
    for image in images:
        file = output / f"{image.stem}.png"
        if file in claimed:
            raise InputError(f"{file}: both {claimed[file]} and {image} would be written to it")
        if file.resolve() in sources:
            raise InputError(f"{file}: the map of {image} would replace the image {sources[file.resolve()]}")
        claimed[file] = image
    return list(claimed)


def _resize_map(saliency: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A map [rows, columns], uint8 or float32, resized to [height, width, …] by OpenCV's bilinear filter."""
    return cv2.resize(saliency, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _pixels(image: ImageLike) -> np.ndarray:
    """An image of any kind that `predict` takes as uint8 [height, width, 3]."""
    if isinstance(image, str | os.PathLike):
        return read_rgb(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image, "image")
    if not isinstance(image, np.ndarray | Array):
        raise InputError(f"image: must be a path, a Pillow image or an array, not {type(image).__name__}")
    array = np.asarray(image)
    grey = array.ndim == 2
    if array.dtype != np.uint8 or array.size == 0 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError(
            "image: an array must be uint8 [height, width, 3] or [height, width], "
            f"not {array.dtype} {list(array.shape)}"
        )
    return np.repeat(array[:, :, None], 3, axis=2) if grey else array


def _checked_size(size: int) -> int:
    if size < 1:
        raise InputError(f"size: must be at least 1, not {size}")
    return size
