"""PurNet-Context: EfficientNet-Lite2 as backbone, a context level, 48 channels, light decoder.

    purinet train --config purnet_context --data DUTS-TR.zip --init efficientnet_lite2.pth -o runs/192

The first of the phases on growing images that `scripts/train_shipped.sh` runs; docs/training.md has curves, times and
scores. Images are not cropped, because a crop can change what is salient.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import purnet_lite


def get_config() -> ConfigDict:
    """PurNet-Lite's settings except for network and images."""
    config = purnet_lite.get_config()
    config.model.backbone = "efficientnet_lite2"
    config.model.channels = 48
    config.model.context = True
    config.steps = 2564  # 4 epochs of 10,253
    config.data.size = 192
    config.data.crop = 1.0
    config.loop.update(checkpoint_every=100, validate_every=320)
    return config
