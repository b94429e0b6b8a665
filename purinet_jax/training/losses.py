"""The losses as pure functions: one per term (paper, section IV; docs/paper.md), and `purnet_losses` for all of them.

Logits, targets and error maps are [batch, height, width, 1] float32. `valid`, an optional boolean [batch], excludes
padded images from the mean. Every term is differentiable and works under `jit` and `vmap`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import xlogy

from purinet_jax.errors import InputError
from purinet_jax.network.model import Maps

Structural = Literal["region", "ssim", "none"]
Superpixels = Literal["slic", "grid", "files"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which losses are summed, and in which form.

    Attributes:
      structural: the structural term: over superpixels, "region" (the paper's), windowed "ssim", or "none".
      released: the released code's forms: the region term applies a second sigmoid to the saliency map, and the main
        term's weight 1 + |error| is differentiated.
      max_regions: a static bound on superpixel labels: labels are 0 … max_regions − 1.
      superpixels: the "region" term's: "slic" and "grid" ones are computed in the train step (`slic_regions`,
        `grid_regions`); "files" are in the batch.
      iou: add the soft intersection over union of the purificatory maps (`iou_loss`), which is not in the paper.
    """

    structural: Structural = "region"
    released: bool = True
    max_regions: int = 256
    superpixels: Superpixels = "slic"
    iou: bool = False

    def __post_init__(self) -> None:
        if self.structural not in ("region", "ssim", "none"):
            raise InputError(f"losses.structural: {self.structural!r} is none of region, ssim, none")
        if not 1 <= self.max_regions <= 65536:
            raise InputError(f"losses.max_regions: {self.max_regions} is not within 1 and 65536")
        if self.superpixels not in ("slic", "grid", "files"):
            raise InputError(f"losses.superpixels: {self.superpixels!r} is none of slic, grid, files")


def batch_mean(values: Array, valid: Array | None = None) -> Array:
    """Mean of one value per image [batch] over the images that are `valid`; 0 if none is."""
    if valid is None:
        return values.mean()
    # Not a product, which would be NaN where a padded image's value is.
    return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)


def pixel_means(values: Array) -> Array:
    """Mean over everything but the batch, [batch, …] → [batch]."""
    # As a matrix product: XLA's CPU backend takes up to forty times as long for the mean of a fused expression.
    pixels = math.prod(values.shape[1:])
    return jnp.matmul(values.reshape(-1, pixels), jnp.full(pixels, 1 / pixels, values.dtype), precision="highest")


def log_probabilities(logits: Array) -> tuple[Array, Array]:
    """log p and log(1 − p) for p = `sigmoid(logits)`, from one exponential and one logarithm."""
    rest = jnp.log(1 + jnp.exp(-jnp.abs(logits)))
    return jnp.minimum(logits, 0) - rest, jnp.minimum(-logits, 0) - rest


def binary_cross_entropy(logits: Array, target: Array, valid: Array | None = None) -> Array:
    """Binary cross-entropy of `sigmoid(logits)` against a target in [0, 1], mean over pixels and images.

    Each logarithm is bounded below by −100, as in PyTorch's `BCELoss`.
    """
    log_p, log_not_p = (jnp.maximum(x, -100.0) for x in log_probabilities(logits))
    return batch_mean(pixel_means(-(target * log_p + (1 - target) * log_not_p)), valid)


def main_loss(logits: Array, target: Array, error: Array | None = None, valid: Array | None = None) -> Array:
    """Cross-entropy of the purificatory map, each pixel weighted by 1 + |error| (paper, IV-A).

    Args:
      logits: the saliency map before its sigmoid; the probability is clipped to [1e-4, 1 − 1e-4].
      target: the mask, in [0, 1].
      error: the rectification error map in (−1, 1), after its tanh, or None for equal weights (stage 1).
      valid: the images that count.
    """
    # Clipping the logarithms equals clipping the probability, also in the gradients.
    log_p, log_not_p = (jnp.clip(x, math.log(1e-4), math.log1p(-1e-4)) for x in log_probabilities(logits))
    loss = -(target * log_p + (1 - target) * log_not_p)
    if error is not None:
        loss = loss * (1 + jnp.abs(error))
    return batch_mean(pixel_means(loss), valid)


def rectification_error_loss(
    error_logits: Array, saliency_logits: Array, target: Array, valid: Array | None = None
) -> Array:
    """Cross-entropy of (error + 1)/2 against (target − map + 1)/2, where the rectified map is not differentiated."""
    rectified = lax.stop_gradient(jax.nn.sigmoid(saliency_logits))
    # (tanh(x) + 1) / 2 is sigmoid(2x).
    return binary_cross_entropy(2 * error_logits, (target - rectified + 1) / 2, valid)


def region_means(maps: Array | np.ndarray, regions: Array | np.ndarray, max_regions: int) -> Array:
    """Mean of each map [height, width, maps] over each superpixel → [max_regions, maps].

    `regions` are labels [height, width] in 0 … max_regions − 1; one without pixels has mean 0.
    """
    labels = regions.reshape(-1)
    ones = jnp.ones((labels.size, 1), maps.dtype)
    values = jnp.concatenate([maps.reshape(labels.size, -1), ones], axis=-1)
    sums = jax.ops.segment_sum(values, labels, num_segments=max_regions)
    return sums[:, :-1] / jnp.maximum(sums[:, -1:], 1)


def structural_similarity_loss(
    logits: Array,
    target: Array,
    regions: Array,
    *,
    released: bool = True,
    max_regions: int = 256,
    valid: Array | None = None,
) -> Array:
    """Structural similarity loss (paper, IV-B): pairs of superpixels must differ as they do in the mask.

    s_i is the mean saliency of superpixel i, D_ij is (s_i − s_j + 1)/2 divided by its sum, for labels 0 to the image's
    largest; the loss is KL(D of the mask ‖ D of the prediction), summed over pairs.

    Args:
      logits: saliency maps before the sigmoid, [batch, height, width, levels].
      target: mask [batch, height, width, 1] in [0, 1].
      regions: superpixel labels, integers [batch, height, width] in 0 … max_regions − 1; larger ones are dropped.
      released: apply a second sigmoid to the map, as the released code does (a perfect map then costs .141);
        otherwise D is at least 1e-4 of its mean, so that the logarithm is finite.
      max_regions: the static bound on labels.
      valid: the images that count.

    Returns:
      One loss per level, [levels].
    """
    saliency = jax.nn.sigmoid(jax.nn.sigmoid(logits)) if released else jax.nn.sigmoid(logits)

    def image_loss(saliency: Array, target: Array, regions: Array) -> Array:
        means = region_means(jnp.concatenate([saliency, target], axis=-1), regions, max_regions)
        count = regions.max() + 1
        present = jnp.arange(max_regions) < count
        pairs = (present[:, None] & present[None, :])[..., None]
        difference = (means[:, None, :] - means[None, :, :] + 1) / 2
        # Not yet divided by the sum over pairs, which is count² / 2 because the differences cancel.
        difference = jnp.where(pairs, difference, 0.5)
        predicted, truth = difference[..., :-1], difference[..., -1:]
        if not released:
            predicted = jnp.maximum(predicted, 0.5e-4)
        divergence = xlogy(truth, truth) - truth * jnp.log(predicted)
        return jnp.where(pairs, divergence, 0).sum((0, 1)) / (count.astype(saliency.dtype) ** 2 / 2)

    losses = jax.vmap(image_loss)(saliency, target, regions.astype(jnp.int32))
    return jax.vmap(batch_mean, in_axes=(1, None))(losses, valid)


SSIM_WINDOW = 11
"""The side of the windows of `windowed_ssim`, pixels."""


def gaussian_window(size: int = SSIM_WINDOW, sigma: float = 1.5) -> np.ndarray:
    """The Gaussian of Wang et al. 2004, [size], summing to 1."""
    window = np.exp(-((np.arange(size) - (size - 1) / 2) ** 2) / (2 * sigma**2))
    return (window / window.sum()).astype(np.float32)


def _window_sums(side: int) -> np.ndarray:
    """Band matrix [side − 10, side] of the Gaussian window at each position."""
    window = gaussian_window()
    rows = np.arange(side - len(window) + 1)[:, None]
    matrix = np.zeros((len(rows), side), np.float32)
    matrix[rows, rows + np.arange(len(window))] = window
    return matrix


def windowed_ssim(x: Array, y: Array) -> Array:
    """Mean SSIM of Wang et al. 2004: 11×11 Gaussian (σ = 1.5), windows inside the image, range 1.

    `x` and `y` are [batch, height, width, channels] with sides of at least 11, either of them possibly with a single
    channel; → [batch, channels] in [−1, 1].
    """
    if min(x.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"windowed SSIM needs sides of at least {SSIM_WINDOW}, not {x.shape[1]}×{x.shape[2]}")
    # As products with band matrices: shifted sums take ten times as long on CPUs.
    rows, columns = (_window_sums(side) for side in x.shape[1:3])

    def blur(image: Array) -> Array:
        return jnp.matmul(rows, jnp.matmul(image, columns.T, precision="highest"), precision="highest")

    x, y = (jnp.moveaxis(image, -1, 1) for image in (x, y))
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((2, 3))


def ssim_loss(logits: Array, target: Array, valid: Array | None = None) -> Array:
    """1 − `windowed_ssim` of the maps and the mask, one per level: logits [batch, height, width, levels] → [levels]."""
    similarity = windowed_ssim(jax.nn.sigmoid(logits), target)
    return jax.vmap(batch_mean, in_axes=(1, None))(1 - similarity, valid)


def iou_loss(logits: Array, target: Array, valid: Array | None = None) -> Array:
    """1 − soft intersection over union per image, Σpy / Σ(p + y − py) (Máttyus et al. 2017; BASNet, Qin et al. 2019).

    Maps before the sigmoid [batch, height, width, levels] and a mask [batch, height, width, 1] → [levels].
    """
    p = jax.nn.sigmoid(logits)
    both = (p * target).sum((1, 2))
    # The 1 keeps an image without an object at a loss of 0 for an empty map, and its gradient finite.
    losses = 1 - (both + 1) / (p.sum((1, 2)) + target.sum((1, 2)) - both + 1)
    return jax.vmap(batch_mean, in_axes=(1, None))(losses, valid)


def purnet_losses(maps: Maps, batch: Mapping[str, Array], objective: Objective) -> dict[str, Array]:
    """Returns every term, each [levels], finest first.

    Args:
      maps: the network's output.
      batch: `mask` [batch, height, width, 1] in [0, 1] (any dtype); `superpixels` [batch, height, width] if the
        structural term is "region"; `valid` [batch], optional.
      objective: which terms, in which form.

    Returns:
      `main`, `structural`, `iou`, `promotion`, `rectification_saliency` and `rectification_error`, as far as the
      network and the objective have them.
    """
    target = batch["mask"].astype(maps.saliency[0].dtype)
    valid = batch.get("valid")
    errors: list[Array | None] = [jnp.tanh(x) for x in maps.error] or [None] * len(maps.saliency)
    if not objective.released:
        errors = [None if e is None else lax.stop_gradient(e) for e in errors]
    terms = {"main": [main_loss(x, target, e, valid) for x, e in zip(maps.saliency, errors, strict=True)]}
    if maps.promotion:
        terms["promotion"] = [binary_cross_entropy(x, target, valid) for x in maps.promotion]
    if maps.rectification:
        terms["rectification_saliency"] = [binary_cross_entropy(x, target, valid) for x in maps.rectification]
        terms["rectification_error"] = [
            rectification_error_loss(e, x, target, valid) for e, x in zip(maps.error, maps.rectification, strict=True)
        ]
    losses = {name: jnp.stack(values) for name, values in terms.items()}
    stacked = jnp.concatenate(maps.saliency, axis=-1)
    if objective.iou:
        losses["iou"] = iou_loss(stacked, target, valid)
    if objective.structural == "ssim":
        losses["structural"] = ssim_loss(stacked, target, valid)
    elif objective.structural == "region":
        regions, released, bound = batch["superpixels"], objective.released, objective.max_regions
        losses["structural"] = structural_similarity_loss(
            stacked, target, regions, released=released, max_regions=bound, valid=valid
        )
    return losses


Losses = Callable[[Maps, Mapping[str, Array], Objective], dict[str, Array]]
"""What training minimises: a function of maps, batch and objective, such as `purnet_losses`. All terms are summed over
their levels. The promotion and rectification pyramids follow their terms (`step.OWN_LOSSES`), the rest of the network
all other terms, whatever their names."""


def total_loss(losses: Mapping[str, Array]) -> Array:
    """The sum of all terms over all levels, all weights 1; 0 of no terms."""
    if not losses:
        return jnp.zeros(())
    return jnp.stack([term.sum() for term in losses.values()]).sum()
