"""Superpixels for the structural similarity loss, computed in the train step: labels per pixel of small regions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

REGIONS = 200
"""About how many superpixels an image is cut into."""

# Linear RGB to CIE XYZ, over the white point D65.
_RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], np.float32
) / np.array([[0.95047], [1.0], [1.08883]], np.float32)
# A cell and the eight around it, as offsets into a grid that is padded by one cell on each side.
_AROUND = tuple((y, x) for y in range(3) for x in range(3))


@jax.jit(static_argnames=("regions", "iterations", "compactness"))
def slic_regions(images: Array, regions: int = REGIONS, iterations: int = 5, compactness: float = 20.0) -> Array:
    """Cuts images into regions of similar colour with SLIC (Achanta et al. 2012), on the device and under `jit`.

    A pixel chooses among nine centres, those of its grid cell and of the eight around it (gSLIC, Ren and Reid 2011), by
    D² = (colour distance in CIELAB)² + (compactness · distance / cell side)². Finally each pixel gets the most frequent
    label in a window around it: 5×5 pixels for cells at least 8 wide, 3×3 from 4 on. Unlike in scikit-image's `slic`,
    regions need not be connected, and the black corners of a rotated image become regions of their own
    (docs/numbers.md compares the two).

    Args:
      images: uint8 RGB [batch, height, width, 3].
      regions: the most regions to make, at least 1.
      iterations: how often pixels choose, at least 1.
      compactness: the colour distance, in CIELAB units, that weighs as much as one cell's side.

    Returns:
      int32 [batch, height, width], labels 0 to at most `regions` - 1, possibly with gaps.

    Raises:
      ValueError: the images are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"SLIC needs uint8 images, not {images.dtype}: colours of normalised ones are not known")
    _, height, width, _ = images.shape
    rows, columns, tall, wide = _grid(height, width, regions)
    # Cells that reach beyond the image are padded with pixels of weight 0.
    missing_y, missing_x = rows * tall - height, columns * wide - width
    top, left = missing_y // 2, missing_x // 2
    scale = compactness / math.sqrt(tall * wide)
    y, x = jnp.meshgrid(scale * jnp.arange(height), scale * jnp.arange(width), indexing="ij")
    position_and_weight = jnp.broadcast_to(jnp.stack([y, x, jnp.ones_like(y)], axis=-1), images.shape)
    pixels = jnp.concatenate([_cielab(images), position_and_weight], axis=-1)
    pixels = jnp.pad(pixels, ((0, 0), (top, missing_y - top), (left, missing_x - left), (0, 0)))
    # [batch, rows, columns, 6, pixels of a cell], so that all that follows is products and sums, without a scatter.
    pixels = pixels.reshape(-1, rows, tall, columns, wide, 6).transpose(0, 1, 3, 5, 2, 4)
    pixels = pixels.reshape(-1, rows, columns, 6, tall * wide)

    def choose(centres: Array) -> Array:
        """The nearest centre of each pixel, as an index into `_AROUND`."""
        around = jnp.pad(centres, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=jnp.inf)
        nearest = jnp.full((*pixels.shape[:3], tall * wide), jnp.inf)
        choice = jnp.zeros(nearest.shape, jnp.int32)
        for i, (y, x) in enumerate(_AROUND):
            centre = around[:, y : y + rows, x : x + columns, :, None]
            distance = ((pixels[..., :5, :] - centre) ** 2).sum(-2)
            choice = jnp.where(distance < nearest, i, choice)
            nearest = jnp.minimum(distance, nearest)
        return choice

    def move(_: int, centres: Array) -> Array:
        """Each centre to the mean of the pixels that chose it; one that none chose stays."""
        chosen = jax.nn.one_hot(choose(centres), len(_AROUND), axis=-2)
        sums = jnp.einsum("byxkp,byxfp->byxkf", chosen, pixels, precision=lax.Precision.HIGHEST)
        # The sums of a cell's pixels that chose the centre at some offset belong to the cell at that offset.
        offsets = [((0, 0), (y, 2 - y), (x, 2 - x), (0, 0)) for y, x in _AROUND]
        shifted = [jnp.pad(sums[..., i, :], offset) for i, offset in enumerate(offsets)]
        total = jnp.stack(shifted).sum(0)[:, 1:-1, 1:-1]
        return jnp.where(total[..., 5:] > 0, total[..., :5] / jnp.maximum(total[..., 5:], 1), centres)

    cells = pixels.sum(-1)
    centres = lax.fori_loop(0, iterations - 1, move, cells[..., :5] / cells[..., 5:])
    choice = choose(centres).reshape(-1, rows, columns, tall, wide).transpose(0, 1, 3, 2, 4)
    choice = choice.reshape(-1, rows * tall, columns * wide)[:, top : top + height, left : left + width]
    row = (np.arange(height, dtype=np.int32)[:, None] + top) // tall
    column = (np.arange(width, dtype=np.int32) + left) // wide
    labels = (choice // 3 - 1 + row) * columns + choice % 3 - 1 + column
    candidates = [(row + y - 1) * columns + column + x - 1 for y, x in _AROUND]
    return _most_frequent(labels, candidates, min(2, min(tall, wide) // 4))


def grid_regions(height: int, width: int, regions: int = REGIONS) -> np.ndarray:
    """Cuts any image of a size into nearly equal rectangles, at most `regions`, as many as `slic_regions` has.

    Returns:
      int32 [height, width], labels from 0, each of them in use.
    """
    rows, columns, _, _ = _grid(height, width, regions)
    row, column = np.arange(height)[:, None] * rows // height, np.arange(width) * columns // width
    return (row * columns + column).astype(np.int32)


def _grid(height: int, width: int, regions: int) -> tuple[int, int, int, int]:
    """Rows and columns of at most `regions` nearly square cells, and a cell's height and width in pixels."""
    rows = min(height, regions, max(1, round(math.sqrt(regions * height / width))))
    columns = min(width, regions // rows)
    tall, wide = -(-height // rows), -(-width // columns)
    return -(-height // tall), -(-width // wide), tall, wide


def _cielab(images: Array) -> Array:
    """uint8 sRGB [..., 3] → CIELAB float32 [..., 3] under D65, L from 0 to 100."""
    rgb = images.astype(jnp.float32) / 255
    linear = jnp.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = jnp.einsum("...c,dc->...d", linear, _RGB_TO_XYZ, precision=lax.Precision.HIGHEST)
    x, y, z = jnp.unstack(jnp.where(xyz > 0.008856, jnp.cbrt(xyz), 7.787 * xyz + 16 / 116), axis=-1)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _most_frequent(labels: Array, candidates: list[np.ndarray], radius: int) -> Array:
    """The most frequent label [batch, height, width] around each pixel; its own, or one of `candidates`
    [height, width] that is more frequent."""
    _, height, width = labels.shape
    side = 2 * radius + 1
    window = jnp.pad(labels, ((0, 0), (radius, radius), (radius, radius)), constant_values=np.iinfo(np.int32).min)

    shifted = [window[:, y : y + height, x : x + width] for y in range(side) for x in range(side)]

    def count(label: Array | np.ndarray) -> Array:
        return sum((other == label).astype(jnp.int8) for other in shifted)  # type: ignore[return-value]

    result, most = labels, count(labels)
    for label in candidates:
        frequency = count(label)
        result = jnp.where(frequency > most, label, result)
        most = jnp.maximum(frequency, most)
    return result
