from .errors import InputError
from .evaluation.evaluate import evaluate
from .network.attention import promotion_attention, rectification_attention
from .network.config import ModelConfig
from .network.model import PurNet
from .prediction.predictor import Predictor, load, remove_background
from .training.losses import purnet_losses, structural_similarity_loss
from .training.step import train_step
from .version import __version__
from .weights.files import load_variables

__all__ = [
    "InputError",
    "ModelConfig",
    "Predictor",
    "PurNet",
    "__version__",
    "evaluate",
    "load",
    "load_variables",
    "promotion_attention",
    "purnet_losses",
    "rectification_attention",
    "remove_background",
    "structural_similarity_loss",
    "train_step",
]
