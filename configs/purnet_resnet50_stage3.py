"""PurNet on ResNet-50, stage 3 of the released recipe: the whole network with all losses.

    purinet train --config purnet_resnet50_stage3 --data DUTS-TR.zip --init runs/stage2 -o runs/stage3

200,000 steps of 2 images at 320². The paper reports on DUTS-TE MAE .039, weighted F .817, F .829 (by its own
protocol). A perfect map's structural loss is .141 per level in the released form, not 0.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """The base's settings."""
    return base.get_config()
