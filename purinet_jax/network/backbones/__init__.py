"""Extractors: image → feature levels, finest first.

One contract: a linen module whose `__call__(images, train)` takes normalised images [batch, height, width, 3] of any
size and returns one [batch, ceil(height / stride), ceil(width / stride), channels] array per level; `strides` gives
the levels' strides, and `pixel_mean` and `pixel_std` (RGB, for pixels in [0, 1]) the normalisation it expects. Its
attributes `axis_name`, `dtype` and `remat` are those of `purinet_jax.network.model.PurNet`.
"""

from purinet_jax.network.backbones.efficientnet_lite import EfficientNetLite
from purinet_jax.network.backbones.mobilenet_v2 import MobileNetV2
from purinet_jax.network.backbones.resnet import ResNet50
from purinet_jax.network.backbones.vgg import VGG16

__all__ = ["VGG16", "EfficientNetLite", "MobileNetV2", "ResNet50"]
