"""PurNet: a backbone, three feature pyramids with their attentions, and the maps they predict.

The network of the released code (paper, III): at each level, the purificatory pyramid's features pass through the
promotion attention of the second pyramid (`oa_` in the authors' names) and the rectification attention of the third
(`ea_`). Parameter names are the authors', split at the dots; the backbone's are below `backbone`.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from purinet_jax.network.attention import promotion_attention, rectification_attention
from purinet_jax.network.backbones.efficientnet_lite import InvertedResidual
from purinet_jax.network.layers import (
    CBP,
    BatchNorm,
    Conv,
    Norm,
    PredictionHead,
    Upsample,
    at_least_float32,
    not_rematerialised,
    rematerialised,
)

ATTENTIONS = ("promotion", "rectification")
"""The parts of the purificatory mechanism, by name."""


class Maps(NamedTuple):
    """PurNet's predictions: one [batch, height, width, 1] float32 map per level, finest first, at the image's size.

    `saliency`, `promotion` and `rectification` are logits (`jax.nn.sigmoid` gives saliency in (0, 1)); `error` is
    before its tanh. Maps of an attention that the network does not have are empty.
    """

    saliency: tuple[Array, ...]
    promotion: tuple[Array, ...] = ()
    rectification: tuple[Array, ...] = ()
    error: tuple[Array, ...] = ()


class Context(nn.Module):
    """A level of half the size with a global view: two inverted residuals with 5×5 windows, then a gate per channel
    computed from the image's mean (after the global guidance of PoolNet, Liu et al. 2019, and EDN's extreme
    downsampling, Wu et al. 2022). [batch, height, width, in] → [batch, ceil(height / 2), ceil(width / 2), 192].
    """

    norm: Norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, stride in enumerate((2, 1)):
            x = InvertedResidual(192, 3, 5, stride, self.norm, name=str(i))(x)
        return x * nn.sigmoid(Conv(192, 1, name="gate")(x.mean((1, 2), keepdims=True)))


class PurNet(nn.Module):
    """PurNet on any backbone: normalised images [batch, height, width, 3] of any size → `Maps`.

    Attributes:
      backbone: a module as `purinet_jax.network.backbones` describes it.
      channels: the width of everything between the backbone and the maps.
      attention: some of `ATTENTIONS`, in that order; the released network has both. Without any it is stage 1's
        network: backbone and purificatory pyramid, with heads directly on its features. With one, the other's pyramid,
        maps and product are left out, and the CBP(3) between the two products stays.
      scaled_promotion: use the mean-one promotion attention (`promotion_attention`) instead of the released one.
      light: bilinear interpolation instead of every transposed convolution, and one CBP(3) instead of the rectification
        branches' CBP(3), CBP(3), CBP(1).
      context: one more level above the backbone's last, at twice its stride, with a global view (`Context`).
      axis_name: the device axis that BatchNorm's statistics are averaged over in training; `None` under a plain `jit`.
      dtype: what layers compute in; parameters, statistics and maps stay float32.
      remat: recompute the inner values of blocks and heads in the backward pass instead of keeping them: less memory,
        about a third more work.

    With `mutable=["intermediates"]`, `apply` also returns the backbone's levels and both attentions, as
    `backbone<level>`, `promotion_attention<level>` and `rectification_attention<level>`. Under `jax.jit`, unused
    outputs are not computed: `apply(...).saliency[0]` alone costs neither the other heads nor levels.
    """

    backbone: nn.Module
    channels: int = 128
    attention: tuple[str, ...] = ATTENTIONS
    scaled_promotion: bool = False
    light: bool = False
    context: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Maps:
        size = (images.shape[1], images.shape[2])
        norm = partial(BatchNorm, train=train, axis_name=self.axis_name)
        remat = rematerialised if self.remat else not_rematerialised
        cbp = partial(remat(CBP), self.channels, light=self.light, norm=norm)
        head = partial(remat(PredictionHead), self.channels, light=self.light, norm=norm)
        keep = partial(self.sow, "intermediates", reduce_fn=lambda _, new: new)

        levels: tuple[Array, ...] = self.backbone(images.astype(self.dtype), norm, remat)
        levels = tuple(features.astype(self.dtype) for features in levels)
        strides: Sequence[int] = self.backbone.strides
        if self.context:
            levels = (*levels, Context(norm, name="context")(levels[-1]))
            strides = (*strides, 2 * strides[-1])
        for level, features in enumerate(levels, 1):
            keep(f"backbone{level}", features)

        def pyramid(prefix: str) -> list[Array]:
            """f_n = convert_n(l_n), f_k = convert_k(l_k) + the upsampled CBP3 of f_(k+1); finest first."""
            features: list[Array] = []
            for level in range(len(levels), 0, -1):
                f = cbp((1,), name=f"{prefix}convert{level}")(levels[level - 1])
                if features:
                    ratio = strides[level] // strides[level - 1]
                    above = cbp((3,), ratio, name=f"{prefix}feature_upscore{level + 1}")(features[0])
                    # Levels round their sides up, so twice the coarser one may be a row or column too large.
                    f = f + above[:, : f.shape[1], : f.shape[2]]
                features.insert(0, f)
            return features

        def separate_head(name: str, x: Array, stride: int) -> Array:
            """A head of the rectification branches, whose transposed convolution has a name of its own."""
            if self.light:
                return head(stride, size, name=name)(x)
            logits = Upsample(stride, name=f"{name}_upscore")(head(stride, None, name=name)(x))
            return logits[:, : size[0], : size[1]]

        promotes, rectifies = (attention in self.attention for attention in ATTENTIONS)
        purificatory = pyramid("")
        promotion_features = pyramid("oa_") if promotes else []
        rectification_features = pyramid("ea_") if rectifies else []
        saliency: list[Array] = []
        promotion: list[Array] = []
        rectification: list[Array] = []
        error: list[Array] = []
        for level, (x, stride) in enumerate(zip(purificatory, strides, strict=True), 1):
            if promotes:
                f = promotion_features[level - 1]
                promote = promotion_attention(f, self.scaled_promotion)
                keep(f"promotion_attention{level}", promote)
                promotion.append(head(stride, size, name=f"oa_predict{level}")(promote * f + f))
                x = promote * x + x
            if self.attention:
                x = cbp((3,), name=f"feature_upscore{level}_2")(x)
            if rectifies:
                f = rectification_features[level - 1]
                branch = (3,) if self.light else (3, 3, 1)
                appearance = cbp(branch, name=f"ea_pre_predict{level}_g")(f)
                # The authors' error features d; R = tanh(d) with d = CBPs(f) − g.
                error_features = cbp(branch, name=f"ea_e_pre_predict{level}_e")(f)
                rectify = rectification_attention(appearance, error_features)
                keep(f"rectification_attention{level}", rectify)
                rectification.append(separate_head(f"ea_predict{level}_g", rectify * appearance + appearance, stride))
                error.append(separate_head(f"ea_e_predict{level}_e", error_features - appearance, stride))
                x = rectify * x + x
            saliency.append(head(stride, size, name=f"predict{level}")(x))
        maps = (saliency, promotion, rectification, error)
        return Maps(*(tuple(x.astype(at_least_float32(self.dtype)) for x in kind) for kind in maps))


def normalise(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """uint8 RGB [batch, height, width, 3] → (x/255 − mean) / std, float32 (float64 with `jax_enable_x64`); float images
    are returned as they are. Raises TypeError for other dtypes."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    if images.dtype != jnp.uint8:
        raise TypeError(f"images are {images.dtype}, not uint8, or floating and normalised")
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
