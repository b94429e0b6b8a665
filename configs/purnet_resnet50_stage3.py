"""Stage 3 of the released recipe: the complete network on ResNet-50 with all losses.

    purinet train --config purnet_resnet50_stage3 --data DUTS-TR.zip --init runs/stage2 -o runs/stage3

200,000 steps of 2 images at 320². The paper reports on DUTS-TE MAE .039, weighted F .817, F .829 (by its own protocol).
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """The base's settings."""
    return base.get_config()
