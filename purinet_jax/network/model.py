"""PurNet: an extractor, three feature pyramids with their attentions, and the maps they predict.

The network of the released code (`purnet.md` §2, paper III): the purificatory pyramid's features pass at each level
through the promotion attention of the second pyramid (`oa_` in the authors' names) and the rectification attention of
the third (`ea_`). Parameter names are the authors', split at the dots; the extractor's stand below `backbone`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from purinet_jax.errors import InputError
from purinet_jax.network.attention import promotion_attention, rectification_attention
from purinet_jax.network.backbones import VGG16, EfficientNetLite, MobileNetV2, ResNet50
from purinet_jax.network.backbones.efficientnet_lite import InvertedResidual
from purinet_jax.network.layers import (
    CBP,
    Conv,
    PredictionHead,
    Upsample,
    at_least_float32,
    bilinear_upsampling,
    rematerialised,
)

BACKBONES: dict[str, Callable[..., Any]] = {
    "efficientnet_lite0": EfficientNetLite,
    "efficientnet_lite2": partial(EfficientNetLite, width=1.1, depth=1.2),
    "mobilenet_v2": MobileNetV2,
    "resnet50": ResNet50,
    "vgg16": VGG16,
}


ATTENTIONS = ("promotion", "rectification")
"""What a network may have of the purificatory mechanism."""


class Maps(NamedTuple):
    """What PurNet predicts: one [batch, height, width, 1] float32 map per level, finest first, at the image's size.

    `saliency`, `promotion` and `rectification` are logits (`jax.nn.sigmoid` gives saliency in (0, 1)); `error` is
    before its tanh. Of an attention that the network does not have (stage 1 has none) the maps are empty.
    """

    saliency: tuple[Array, ...]
    promotion: tuple[Array, ...] = ()
    rectification: tuple[Array, ...] = ()
    error: tuple[Array, ...] = ()


class Context(nn.Module):
    """A level of half the size that sees the whole image: two inverted residuals with 5×5 windows, each channel then
    gated by what is in all of the image (after the global guidance of PoolNet, Liu et al. 2019, and EDN's extreme
    downsampling, Wu et al. 2022). [batch, height, width, in] → [batch, ceil(height / 2), ceil(width / 2), 192].
    """

    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i, stride in enumerate((2, 1)):
            x = InvertedResidual(192, 3, 5, stride, self.axis_name, self.dtype, name=str(i))(x, train)
        gate = Conv(192, 1, dtype=self.dtype, name="gate")(x.mean((1, 2), keepdims=True))
        return x * nn.sigmoid(gate)


class PurNet(nn.Module):
    """PurNet on any extractor: normalised images [batch, height, width, 3] of any size → `Maps`.

    Attributes:
      backbone: the extractor (`purinet_jax.network.backbones`); `axis_name` and `dtype` are set on it too.
      channels: the width of everything between the extractor and the maps.
      attention: which of `ATTENTIONS`. The released network has both. Without any it is stage 1's network: extractor
        and purificatory pyramid, heads straight on its features. With one, the other's pyramid, maps and product are
        left out, and the CBP(3) between the two products stays.
      scaled_promotion: the mean-one promotion attention (`promotion_attention`) in the released one's place.
      light: bilinear interpolation in place of every transposed convolution, and one CBP(3) in place of the
        rectification branches' CBP(3), CBP(3), CBP(1).
      context: one more level above the extractor's last, at twice its stride, that sees the whole image (`Context`).
      axis_name: the device axis that BatchNorm's statistics are averaged over in training.
      dtype: what convolutions compute in; parameters, statistics and maps stay float32.
      remat: in the backward pass compute anew what lies between the extractor's blocks and inside the pyramids' blocks
        and heads, instead of keeping it: less memory, about a third more work. It is set on the extractor too.

    With `mutable=["intermediates"]` the extractor's levels and both attentions come back as `backbone<level>`,
    `promotion_attention<level>` and `rectification_attention<level>`. Under `jax.jit`, what the caller does not
    return is not computed: `apply(...).saliency[0]` alone costs neither the other heads nor levels.
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
        levels = self.backbone(images.astype(self.dtype), train)
        strides: Sequence[int] = self.backbone.strides
        if self.context:
            levels = (*levels, Context(self.axis_name, self.dtype, name="context")(levels[-1], train))
            strides = (*strides, 2 * strides[-1])
        numbers = range(1, len(levels) + 1)
        for level, features in zip(numbers, levels, strict=True):
            self.sow("intermediates", f"backbone{level}", features, reduce_fn=lambda _, new: new)

        def cbp(name: str, x: Array, *kernel_sizes: int, upsample: int = 1) -> Array:
            learned = 1 if self.light else upsample

            def block(module: nn.Module, x: Array) -> Array:
                x = CBP(self.channels, kernel_sizes, learned, self.axis_name, self.dtype, name=name)(x, train)
                return bilinear_upsampling(x, upsample) if learned < upsample else x

            return rematerialised(block, self.remat)(self, x)

        def predict(name: str, x: Array, stride: int, upsample: bool = True) -> Array:
            def block(module: nn.Module, x: Array) -> Array:
                head = PredictionHead(
                    self.channels, stride, upsample, self.axis_name, self.dtype, self.light, name=name
                )
                return head(x, size, train).astype(at_least_float32(self.dtype))

            return rematerialised(block, self.remat)(self, x)

        def pyramid(prefix: str) -> tuple[Array, ...]:
            """f_n = convert_n(l_n), f_k = convert_k(l_k) + the upsampled CBP3 of f_(k+1); finest first."""
            features: list[Array] = []
            for level in reversed(numbers):
                f = cbp(f"{prefix}convert{level}", levels[level - 1], 1)
                if features:
                    ratio = strides[level] // strides[level - 1]
                    above = cbp(f"{prefix}feature_upscore{level + 1}", features[0], 3, upsample=ratio)
                    # Levels round their sides up, so twice the coarser one may be a row or column too large.
                    f = f + above[:, : f.shape[1], : f.shape[2]]
                features.insert(0, f)
            return tuple(features)

        purificatory = pyramid("")
        if not self.attention:
            return Maps(tuple(predict(f"predict{k}", purificatory[k - 1], strides[k - 1]) for k in numbers))

        promotes, rectifies = (attention in self.attention for attention in ATTENTIONS)
        promotion_features = pyramid("oa_") if promotes else ()
        rectification_features = pyramid("ea_") if rectifies else ()
        saliency: list[Array] = []
        promotion: list[Array] = []
        rectification: list[Array] = []
        error: list[Array] = []
        for level in numbers:
            stride = strides[level - 1]
            x = purificatory[level - 1]
            if promotes:
                f = promotion_features[level - 1]
                promote = promotion_attention(f, self.scaled_promotion)
                self.sow("intermediates", f"promotion_attention{level}", promote, reduce_fn=lambda _, new: new)
                promotion.append(predict(f"oa_predict{level}", promote * f + f, stride))
                x = promote * x + x
            x = cbp(f"feature_upscore{level}_2", x, 3)
            if rectifies:
                f = rectification_features[level - 1]
                branch = (3,) if self.light else (3, 3, 1)
                appearance = cbp(f"ea_pre_predict{level}_g", f, *branch)
                # The authors' error features d; R = tanh(d) with d = CBPs(f) − g.
                error_features = cbp(f"ea_e_pre_predict{level}_e", f, *branch)
                rectify = rectification_attention(appearance, error_features)
                self.sow("intermediates", f"rectification_attention{level}", rectify, reduce_fn=lambda _, new: new)
                for maps, name, features in (
                    (rectification, f"ea_predict{level}_g", rectify * appearance + appearance),
                    (error, f"ea_e_predict{level}_e", error_features - appearance),
                ):
                    if self.light:
                        maps.append(predict(name, features, stride))
                        continue
                    logits = predict(name, features, stride, upsample=False)
                    logits = Upsample(stride, self.dtype, name=f"{name}_upscore")(logits)
                    maps.append(logits[:, : size[0], : size[1]].astype(at_least_float32(self.dtype)))
                x = rectify * x + x
            saliency.append(predict(f"predict{level}", x, stride))
        return Maps(tuple(saliency), tuple(promotion), tuple(rectification), tuple(error))


def normalise(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """uint8 RGB [batch, height, width, 3] → float32, (x/255 − mean) / std; float images are normalised already."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def named_attentions(value: Any) -> tuple[str, ...]:
    """The `attention` of a model configuration, in the order of `ATTENTIONS`: some of those names, or, as files of
    earlier versions have it, true for both and false for none.

    Raises InputError where it is neither.
    """
    if isinstance(value, bool):
        return ATTENTIONS if value else ()
    if not isinstance(value, list | tuple) or any(name not in ATTENTIONS for name in value):
        raise InputError(f"model.attention: {value!r} is not a list of {' and '.join(ATTENTIONS)}, of one, or empty")
    return tuple(name for name in ATTENTIONS if name in value)


def build_model(
    config: Mapping[str, Any],
    *,
    axis_name: str | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> PurNet:
    """The network that a model configuration describes.

    Args:
      config: `backbone` (a name in `BACKBONES`) and, optionally, `channels`, `attention`, `scaled_promotion`, `light`
        and `context` as in `PurNet` (`attention` as `named_attentions` takes it).
      axis_name: as in `PurNet`.
      dtype: as in `PurNet`.
      remat: as in `PurNet`.

    Raises:
      InputError: an unknown key or backbone.
    """
    config = dict(config)
    name = config.pop("backbone", None)
    if not isinstance(name, str) or name not in BACKBONES:
        raise InputError(f"model.backbone: {name!r} is none of {', '.join(BACKBONES)}")
    unknown = sorted(set(config) - {"channels", "attention", "scaled_promotion", "light", "context"})
    if unknown:
        raise InputError(f"model.{unknown[0]}: no such setting")
    channels = config.get("channels", 128)
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"model.channels: {channels!r} is not an integer of at least 1")
    if "attention" in config:
        config["attention"] = named_attentions(config["attention"])
    backbone = BACKBONES[name](axis_name=axis_name, dtype=dtype, remat=remat)
    return PurNet(backbone=backbone, axis_name=axis_name, dtype=dtype, remat=remat, **config)


def without_device_axis(model: PurNet) -> PurNet:
    """The same network for one device: its BatchNorm averages over no axis, so that it runs under a plain `jit`."""
    return model.clone(axis_name=None, backbone=model.backbone.clone(axis_name=None))


def model_config(model: PurNet) -> dict[str, Any]:
    """The configuration that `build_model` makes `model` from; device axis, compute dtype and `remat` are not in it."""
    plain = model.backbone.clone(axis_name=None, dtype=jnp.float32, remat=False)
    return {
        "backbone": next(name for name, extractor in BACKBONES.items() if extractor() == plain),
        "channels": model.channels,
        "attention": model.attention,
        "scaled_promotion": model.scaled_promotion,
        "light": model.light,
        "context": model.context,
    }
