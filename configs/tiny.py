"""A small PurNet for CPUs: MobileNetV2 as backbone, 16 channels, all losses, 96² images.

    purinet train --config tiny --data demo/train/DUTS-TR --validation demo/validation/DUTS-TR -o runs/tiny

On the synthetic images of scripts/demo.sh two to three minutes on 2 CPU cores, a third of it compilation, to a
validation MAE below .06. For photos, start from `--init` and take more steps.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """Stage 3 with the paper's losses and AdamW, from random weights."""
    config = base.get_config()
    config.model.backbone = "mobilenet_v2"
    config.model.channels = 16
    config.model.scaled_promotion = True
    config.steps = 180
    config.batch_size = 8
    config.losses.released = False
    config.optimizer.name = "adamw"
    config.optimizer.rate = 2e-3
    config.optimizer.group_rates.update(promotion=1.0, rectification=1.0)
    config.optimizer.decaying_groups = ("backbone", "purificatory", "promotion", "rectification")
    config.optimizer.warmup_steps = 20
    config.data.size = 96
    config.loop.update(workers=1, log_every=10, panel_every=90, checkpoint_every=60, validate_every=60)
    return config
