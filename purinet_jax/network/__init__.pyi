from .attention import promotion_attention, rectification_attention
from .folding import fold_batchnorm
from .inference import all_maps, finest_maps, saliency_maps
from .model import Maps, PurNet, build_model, model_config, normalise, without_device_axis

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
