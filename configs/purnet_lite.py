"""PurNet-Lite: MobileNetV2 as backbone, 32 channels, light decoder.

    purinet train --config purnet_lite --data DUTS-TR.zip --init mobilenet_v2.npz -o runs/lite

The paper's losses with a soft intersection over union instead of the structural one, AdamW with a cosine, an average of
the weights, crops and jitter. Half an hour on 2 CPU cores to a validation MAE of .045 at 160²; docs/training.md has the
two phases on larger images that follow, and the scores.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """Stage 3's network with a light decoder, and a recipe for few epochs."""
    config = base.get_config()
    config.model.backbone = "mobilenet_v2"
    config.model.channels = 32
    config.model.scaled_promotion = True
    config.model.light = True
    config.steps = 2600  # 4 epochs of 10,253
    config.batch_size = 16
    config.average_decay = 0.998
    config.losses.released = False
    config.losses.structural = "none"
    config.losses.iou = True
    config.optimizer.name = "adamw"
    config.optimizer.rate = 2e-3
    config.optimizer.group_rates.update(backbone=0.15, promotion=1.0, rectification=1.0)
    config.optimizer.decaying_groups = ("backbone", "purificatory", "promotion", "rectification")
    config.optimizer.decay = "cosine"
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 1e-2
    config.data.size = 160
    config.data.rotate = 0.0
    config.data.crop = 0.6
    config.data.jitter = 0.2
    config.data.holdout = 300
    config.loop.update(workers=1, log_every=20, panel_every=0, checkpoint_every=200, validate_every=600)
    return config
