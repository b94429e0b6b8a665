"""What the paper's parts bring: the row "all" of the ablation, a small network and a budget that every row can have.

    purinet train --config ablation --data DUTS-TR.zip --init mobilenet_v2.npz -o runs/ablation/seed0/all

`scripts/ablation.sh` trains the other rows, which differ from this one by overrides of `model.attention`,
`losses.structural` and `losses.iou` alone; docs/ablation.md says how. Losses and promotion attention have the paper's
forms (one sigmoid, attention of mean one): the released code's, a second sigmoid and an attention of 1e-6, leave little
to compare.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import purnet_lite


def get_config() -> ConfigDict:
    """PurNet-Lite with the paper's losses, on whole images."""
    config = purnet_lite.get_config()
    config.steps = 1500
    config.losses.structural = "region"
    config.losses.superpixels = "slic"  # made in the step, so that nothing has to be stored
    config.losses.iou = False
    config.data.crop = 1.0
    config.loop.update(validate_every=500, checkpoint_every=100)
    return config
