"""PurNet on ResNet-50, all of it with all losses, in the forms that the paper describes: the `fixed` recipe.

    purinet train --config purnet_fixed --data DUTS-TR.zip --init runs/stage2 -o runs/fixed

Stage 3 (purnet.md §3 and §4) without three things that the released code does and the paper does not say:

- The structural loss applies one sigmoid to the maps, not two. With two a perfect map still costs .141 and
  an inverted one only .288, against 0 and 3.07: the maps hardly feel it.
- The main loss's weight 1 + |error| is a constant for the gradient. In the released code the backbone can
  also lower that loss by making the error map call fewer pixels wrong.
- The rates of all four groups decay, not the backbone's alone; the other three end at the rate they began
  with there.

200,000 steps of 2 images at 320², as many as stage 3. Expect structural losses near 0 on good maps. No
published number belongs to this recipe. It starts from stage 2 (or goes on from stage 3's weights), whose
transposed convolutions are kept.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """The base's settings but for the forms of the losses and the rates over time."""
    config = base.get_config()
    config.losses.released = False
    config.optimizer.decaying_groups = ("backbone", "purificatory", "promotion", "rectification")
    return config
