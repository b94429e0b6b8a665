"""Stage 1 of the released recipe: PurNet on ResNet-50 without attentions, with cross-entropy and structural loss.

    purinet train --config purnet_resnet50_stage1 --data DUTS-TR.zip --init resnet50.safetensors -o runs/stage1

50,000 steps of 4 images at 320². On CPUs a step takes seconds; `tiny` is a configuration to try things with.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """The base's settings except for attentions, steps, batch and one rate."""
    config = base.get_config()
    config.model.attention = ()
    config.steps = 50_000
    config.batch_size = 4
    config.optimizer.group_rates.purificatory = 10.0
    return config
