"""The network of the paper: extractors, the layers between, the two attentions, and what it answers to images. Pure
functions of variables and arrays; nothing here knows of files or of training.
"""

from purinet_jax.network.attention import promotion_attention, rectification_attention
from purinet_jax.network.folding import fold_batchnorm
from purinet_jax.network.inference import all_maps, finest_maps, saliency_maps
from purinet_jax.network.model import Maps, PurNet, build_model, model_config, normalise, without_device_axis

__all__ = [
    "Maps",
    "PurNet",
    "all_maps",
    "build_model",
    "finest_maps",
    "fold_batchnorm",
    "model_config",
    "normalise",
    "promotion_attention",
    "rectification_attention",
    "saliency_maps",
    "without_device_axis",
]
