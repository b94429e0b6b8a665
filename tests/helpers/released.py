"""The configuration of the released network, as the authors' weights tell it."""

RELEASED = {
    "backbone": "resnet50",
    "channels": 128,
    "attention": ("promotion", "rectification"),
    "scaled_promotion": False,
    "light": False,
    "context": False,
}
