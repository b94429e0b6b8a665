"""The configuration of the released network, which the authors' weights determine."""

from purinet_jax.network.config import ModelConfig

RELEASED = ModelConfig(
    backbone="resnet50",
    channels=128,
    attention=("promotion", "rectification"),
    scaled_promotion=False,
    light=False,
    context=False,
)
