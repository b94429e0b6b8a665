"""Stage 3 with the paper's losses instead of the released code's (docs/paper.md): the `fixed` recipe.

    purinet train --config purnet_fixed --data DUTS-TR.zip --init runs/stage2 -o runs/fixed

- The structural loss applies one sigmoid to the maps, not two. With two a perfect map costs .141 and an inverted one
  .288, instead of 0 and 3.07, so the loss hardly depends on the map.
- The main loss's weight 1 + |error| is not differentiated. In the released code a smaller predicted error also lowers
  the loss.
- The rates of all four groups decay, not only the backbone's.

200,000 steps of 2 images at 320², from stage 2 or 3. The paper has no scores for this recipe.
"""

from ml_collections import ConfigDict
from purinet_jax.configs import base


def get_config() -> ConfigDict:
    """The base's settings except for the forms of the losses and the decay of the rates."""
    config = base.get_config()
    config.losses.released = False
    config.optimizer.decaying_groups = ("backbone", "purificatory", "promotion", "rectification")
    return config
