"""Winograd's minimal filtering over an image's rows: convolutions with fewer multiplications.

F(m, r) computes m neighbouring outputs of a filter of r taps with m + r − 1 multiplications instead of m · r, as
y = Aᵀ((G g) ⊙ (Bᵀ d)) (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, CVPR 2016). Over rows and
columns at once it would save more multiplications, but on XLA's CPU backend the sums of single pixels before and after
cost what that saves. Over rows alone, they are sums of contiguous rows, and ⊙ is a convolution of height 1.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, export, lax
from numpy.polynomial.polynomial import polyfromroots

from purinet_jax.network.cpu.platform import traced_for_cpus

Padding = tuple[tuple[int, int], tuple[int, int]]
LAYOUT = ("NHWC", "HWIO", "NHWC")

# More points, or larger ones, increase rounding errors: these cost one digit at most.
_POINTS = (0, 1, -1, 2, -2)


@functools.cache
def minimal_filtering(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of F(`outputs`, `taps`) by Toom and Cook, for the points 0, 1, −1, 2, −2 and infinity.

    Returns:
      Aᵀ [outputs, products], G [products, taps] and Bᵀ [products, inputs], float64, where products = inputs =
      outputs + taps − 1, with which Aᵀ((G g) ⊙ (Bᵀ d)) is the correlation of d [inputs] with g [taps].

    Raises:
      ValueError: it needs more points than there are.
    """
    finite = outputs + taps - 2
    if finite > len(_POINTS):
        raise ValueError(f"F({outputs}, {taps}) needs {finite} points, there are {len(_POINTS)}")
    points = np.array(_POINTS[:finite], np.float64)
    others = [np.delete(points, i) for i in range(finite)]
    after = np.vander(points, outputs, increasing=True).T
    kernel = np.vander(points, taps, increasing=True) / [[np.prod(p - o)] for p, o in zip(points, others, strict=True)]
    # The last product is the point at infinity's.
    after = np.column_stack([after, np.arange(outputs) == outputs - 1])
    kernel = np.vstack([kernel, np.arange(taps) == taps - 1])
    before = [[*polyfromroots(rest), 0.0] for rest in others] + [polyfromroots(points)]
    return after, kernel, np.array(before)


def tile_rows(x: Array, kernel: Array, dilation: int, padding: Padding) -> int | None:
    """The number of output rows to compute at once in `convolution_by_rows`; `None` to use the direct convolution.

    That is faster where there are few channels, where tiles do not fit the rows, and, as kernels are transformed too,
    where there are few pixels.
    """
    # Minimal filtering costs digits that 16-bit floats lack; with a symbolic batch the number of pixels is unknown.
    if not traced_for_cpus() or x.dtype not in (jnp.float32, jnp.float64) or export.is_symbolic_dim(x.shape[0]):
        return None
    taps, _, *channels = kernel.shape
    height, width = (
        side + sum(pad) - dilation * (window - 1)
        for side, pad, window in zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)
    )
    if taps not in (2, 3) or min(channels) < 64 or len(x) * height * width < 1000:
        return None
    rows = -(-height // dilation)
    products, tile = min(((tile + taps - 1) * -(-rows // tile), tile) for tile in (2, 3, 4))
    return tile if products <= 0.85 * rows * taps else None


def convolution_by_rows(x: Array, kernel: Array, dilation: int, padding: Padding, tile: int) -> Array:
    """The convolution of stride 1 of `x` [batch, height, width, in] with `kernel` [height, width, in, out], `tile` rows
    of the output at once."""
    taps, _, _, features = kernel.shape
    rows = x.shape[1] + sum(padding[0]) - dilation * (taps - 1)
    after, for_kernel, before = minimal_filtering(tile, taps)
    inputs = _tiles(x, rows, taps, dilation, padding[0][0], tile)
    products = []
    for weights, kernel_weights in zip(before, for_kernel, strict=True):
        part = _weighted(weights, inputs)
        product = lax.conv_general_dilated(
            part.reshape(len(x), -1, *part.shape[3:]),
            _weighted(kernel_weights, list(kernel))[None],
            (1, 1),
            ((0, 0), padding[1]),
            rhs_dilation=(1, dilation),
            dimension_numbers=LAYOUT,
        )
        products.append(product.reshape(*part.shape[:3], -1, features))
    y = jnp.stack([_weighted(weights, products) for weights in after], 2)
    return y.reshape(len(x), -1, y.shape[4], features)[:, :rows]


def kernel_gradient_by_rows(x: Array, gradient: Array, taps: int, dilation: int, padding: Padding, tile: int) -> Array:
    """The kernel's gradient [taps, width, in, out] of `convolution_by_rows` from that of its output, `gradient`
    [batch, height, width, out]."""
    batch, rows, width, features = gradient.shape
    after, for_kernel, before = minimal_filtering(tile, taps)
    x = jnp.pad(x, ((0, 0), (0, 0), padding[1], (0, 0)))
    inputs = _tiles(x, rows, taps, dilation, padding[0][0], tile)
    tiles = inputs[0].shape[1]
    gradient = jnp.pad(gradient, ((0, 0), (0, tiles * tile * dilation - rows), (0, 0), (0, 0)))
    gradient = gradient.reshape(batch, tiles, tile, dilation, width, features)
    gradients = [gradient[:, :, i] for i in range(tile)]
    products = []
    for weights, gradient_weights in zip(before, after.T, strict=True):
        part = _weighted(weights, inputs).reshape(batch * tiles * dilation, -1, x.shape[-1])
        window = _weighted(gradient_weights, gradients).reshape(batch * tiles * dilation, width, features)
        products.append(row_kernel_gradient(part, window, dilation))
    return jnp.stack([_weighted(weights, products) for weights in for_kernel.T])


def row_kernel_gradient(x: Array, gradient: Array, dilation: int) -> Array:
    """The gradient [width, in, out] of a kernel of height 1.

    `x` [rows, padded width, in] are the rows of all images that the kernel met, and `gradient` [rows, width, out] is
    that of its output. Computed as one 1-D convolution over the width, with in-channels as the batch and rows as
    features.
    """
    layout = lax.ConvDimensionNumbers((2, 0, 1), (2, 0, 1), (1, 2, 0))
    return lax.conv_general_dilated(x, gradient, (dilation,), "VALID", dimension_numbers=layout)


def _tiles(x: Array, rows: int, taps: int, dilation: int, before: int, tile: int) -> list[Array]:
    """One array [batch, tiles, dilation, width, channels] for each input row of a tile: that row of all tiles. With
    dilation, a tile takes every `dilation`-th row."""
    batch, height, width, channels = x.shape
    tiles = -(-rows // (dilation * tile))
    inputs = tiles * tile + taps - 1
    x = jnp.pad(x, ((0, 0), (before, dilation * inputs - height - before), (0, 0), (0, 0)))
    x = x.reshape(batch, inputs, dilation, width, channels)
    return [x[:, i : i + (tiles - 1) * tile + 1 : tile] for i in range(tile + taps - 1)]


def _weighted(weights: np.ndarray, parts: Sequence[Array]) -> Array:
    """The sum of `parts`, each times its weight."""
    return functools.reduce(
        jnp.add,
        (part if weight == 1 else float(weight) * part for weight, part in zip(weights, parts, strict=True) if weight),
    )
