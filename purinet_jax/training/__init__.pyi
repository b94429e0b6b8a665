from .configurations import known_configurations, load_config
from .losses import Objective, purnet_losses, structural_similarity_loss, total_loss
from .optim import GROUPS, OptimizerConfig, make_optimizer
from .step import TrainState, create_state, place_batches, place_state, pmap_step, sharded_step, train_step
from .superpixels import grid_regions, slic_regions

__all__ = [
    "GROUPS",
    "Objective",
    "OptimizerConfig",
    "TrainState",
    "create_state",
    "grid_regions",
    "known_configurations",
    "load_config",
    "make_optimizer",
    "place_batches",
    "place_state",
    "pmap_step",
    "purnet_losses",
    "sharded_step",
    "slic_regions",
    "structural_similarity_loss",
    "total_loss",
    "train_step",
]
