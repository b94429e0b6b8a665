"""Stage 2 of the released recipe: the complete network on ResNet-50, without the structural loss.

    purinet train --config purnet_resnet50_stage2 --data DUTS-TR.zip --init runs/stage1 -o runs/stage2

250,000 steps of 4 images at 320², from stage 1, with transposed convolutions reset to bilinear ones. Its loss has other
terms than stage 1's and is not comparable with it.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """The base's settings except for steps, batch, upsampling and the structural loss."""
    config = base.get_config()
    config.steps = 250_000
    config.batch_size = 4
    config.reset_upsampling = True
    config.losses.structural = "none"
    return config
