"""PurNet on ResNet-50, stage 2 of the released recipe: the whole network without the structural loss.

    purinet train --config configs/purnet_resnet50_stage2.py --data DUTS-TR.zip --init runs/stage1 -o runs/stage2

250,000 steps of 4 images at 320², from stage 1 with every transposed convolution bilinear again. Its loss is not
comparable with stage 1's: no structural term, but those of the promotion and rectification maps, 15 in all.
"""

import purnet_resnet50_stage1
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Stage 1's settings but for the network, the losses and the rates."""
    config = purnet_resnet50_stage1.get_config()
    config.model.attention = True
    config.steps = 250_000
    config.reset_upsampling = True
    config.losses.structural = "none"
    config.optimizer.group_rates.purificatory = 1.0
    return config
