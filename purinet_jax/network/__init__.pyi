from .attention import promotion_attention, rectification_attention
from .config import ModelConfig
from .folding import fold_batchnorm
from .inference import all_maps, finest_maps, saliency_maps
from .model import Maps, PurNet, normalise

__all__ = [
    "Maps",
    "ModelConfig",
    "PurNet",
    "all_maps",
    "finest_maps",
    "fold_batchnorm",
    "normalise",
    "promotion_attention",
    "rectification_attention",
    "saliency_maps",
]
