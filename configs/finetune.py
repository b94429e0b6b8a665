"""Fine-tuning of a trained network on a few dozen to some thousand pairs of your own.

    purinet finetune my_pairs/ -o runs/mine

Network and size are those of the weights; 15 % of the pairs are held out. The learning rate is a quarter of that for
training from a backbone, the backbone's a tenth of it. BatchNorm's statistics are frozen, since those of a few dozen
images are worse. The start is validated, too, and training ends after five validations without improvement, so the best
checkpoint, which `purinet predict --checkpoint runs/mine` loads, is no worse on the held-out pairs than the start.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import purnet_lite


def get_config() -> ConfigDict:
    """PurNet-Lite's losses and optimiser at lower rates, on uncropped images."""
    config = purnet_lite.get_config()
    config.steps = 600
    config.batch_size = 8
    config.average_decay = 0.98
    config.freeze_statistics = True
    config.optimizer.rate = 5e-4
    config.optimizer.group_rates.update(backbone=0.1)
    config.optimizer.warmup_steps = 30
    config.data.crop = 1.0
    config.data.holdout = 0  # 15 % of the pairs, at most 200
    config.loop.update(log_every=10, panel_every=150, checkpoint_every=30, validate_every=30)
    config.loop.update(validate_first=True, patience=5)
    return config
