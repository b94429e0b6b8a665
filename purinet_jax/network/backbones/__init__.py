"""Backbones: image → feature levels, finest first.

A backbone is a linen module with `__call__(images, norm, remat)`, which takes normalised images [batch, height, width,
3] of any size and returns one array [batch, ceil(height / stride), ceil(width / stride), channels] per level. `strides`
gives the levels' strides, `pixel_mean` and `pixel_std` (RGB, for pixels in [0, 1]) the normalisation that it expects.
`PurNet` passes the last two arguments of the call: `norm(name=…)` constructs a BatchNorm that is in the network's mode
and averages over its devices, and `remat(Block)` is the module class or function `Block`, rematerialised if the network
is. A backbone may ignore both, and computes in the dtype of its images.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from purinet_jax.network.backbones.efficientnet_lite import EfficientNetLite
from purinet_jax.network.backbones.mobilenet_v2 import MobileNetV2
from purinet_jax.network.backbones.resnet import ResNet50
from purinet_jax.network.backbones.vgg import VGG16

__all__ = ["BACKBONES", "VGG16", "EfficientNetLite", "MobileNetV2", "ResNet50"]

BACKBONES: dict[str, Callable[..., Any]] = {
    "efficientnet_lite0": EfficientNetLite,
    "efficientnet_lite2": partial(EfficientNetLite, width=1.1, depth=1.2),
    "mobilenet_v2": MobileNetV2,
    "resnet50": ResNet50,
    "vgg16": VGG16,
}
"""The package's backbones by their names in a model configuration."""
