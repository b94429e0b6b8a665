"""The row "all" of the ablation (docs/ablation.md): a small network, at a cost that every row can be trained for.

    purinet train --config ablation --data DUTS-TR.zip --init mobilenet_v2.npz -o runs/ablation/seed0/all

`scripts/ablation.sh` trains the other rows, which override only `model.attention`, `losses.structural` and
`losses.iou`. Losses and promotion attention have the paper's forms (one sigmoid, attention of mean one), because the
released code's (two sigmoids, attention of 1e-6) have little effect.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import purnet_lite


def get_config() -> ConfigDict:
    """PurNet-Lite with the paper's losses, on uncropped images."""
    config = purnet_lite.get_config()
    config.steps = 1500
    config.losses.structural = "region"
    config.losses.iou = False
    config.data.crop = 1.0
    config.loop.update(validate_every=500, checkpoint_every=100)
    return config
