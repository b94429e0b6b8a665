"""PurNet on ResNet-50, stage 1 of the released recipe: no attentions yet, BCE and structural loss.

    purinet train --config purnet_resnet50_stage1 --data DUTS-TR.zip --init resnet50.safetensors -o runs/stage1

50,000 steps of 4 images at 320². The paper's numbers (DUTS-TE MAE .039) are those of stage 3. On CPUs a step
takes seconds and the stage days; `tiny` is for trying things there.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """The released settings (purnet.md §4)."""
    config = base.get_config()
    config.model.attention = ()
    config.steps = 50_000
    config.batch_size = 4
    config.optimizer.group_rates.purificatory = 10.0
    return config
