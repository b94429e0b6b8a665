"""Fine-tuning: weights that find objects already, on a few dozen to some thousand pairs of one's own.

    purinet finetune my_pairs/ -o runs/mine

Network and size are those of the weights, whatever stands here; 15 % of the pairs are held out. The learning rate is
a quarter of what training from an extractor takes, the extractor's a tenth of that. BatchNorm keeps the statistics
that it has, which those of a few dozen pictures would only spoil. An average of the weights is kept, the start is
validated as well, and training ends once five validations in a row bring nothing: the best checkpoint, which `purinet
predict --checkpoint runs/mine` takes, is no worse on the held-out pairs than what was there before.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import purnet_lite


def get_config() -> ConfigDict:
    """PurNet-Lite's losses and optimiser, gentler, on whole images."""
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
