"""PurNet-Context, the network of `purinet predict`: EfficientNet-Lite2 extractor, a level that sees the whole image, 48
channels, light decoder.

    purinet train --config configs/purnet_context.py --data DUTS-TR.zip --init efficientnet_lite2.pth -o runs/192

This is the first of the phases that scripts/train_shipped.sh runs on growing images; docs/training.md has their
curves, times and scores. PurNet-Lite's recipe on whole images: a crop can change what is salient.
"""

import purnet_lite
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """PurNet-Lite's settings but for the network and the images."""
    config = purnet_lite.get_config()
    config.model.backbone = "efficientnet_lite2"
    config.model.channels = 48
    config.model.context = True
    config.steps = 2564  # 4 epochs of 10,253
    config.data.size = 192
    config.data.crop = 1.0
    config.loop.checkpoint_every = 100
    config.loop.validate_every = 320
    return config
