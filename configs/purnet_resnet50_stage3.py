"""PurNet on ResNet-50, stage 3 of the released recipe: the whole network with all losses.

    purinet train --config configs/purnet_resnet50_stage3.py --data DUTS-TR.zip --init runs/stage2 -o runs/stage3

200,000 steps of 2 images at 320². The paper reports on DUTS-TE MAE .039, weighted F .817, F .829 (by its own
protocol). A perfect map's structural loss is .141 per level in the released form, not 0.
"""

import purnet_resnet50_stage2
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Stage 2's settings but for steps, batch and the structural loss."""
    config = purnet_resnet50_stage2.get_config()
    config.steps = 200_000
    config.batch_size = 2
    config.reset_upsampling = False
    config.losses.structural = "region"
    return config
