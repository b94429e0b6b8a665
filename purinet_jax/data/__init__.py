"""Data sets: image files, pairs of image and mask, augmentation, batches."""

from purinet_jax.data.augment import augment, resize_image, resize_labels
from purinet_jax.data.images import check_image, read_mask, read_rgb, to_png
from purinet_jax.data.pairs import Example, Pairs, bad_pairs, check_pairs, open_pairs
from purinet_jax.data.pipeline import Batch, Batches, evaluation_batches, training_batches
from purinet_jax.data.synthetic import write_synthetic

__all__ = [
    "Batch",
    "Batches",
    "Example",
    "Pairs",
    "augment",
    "bad_pairs",
    "check_image",
    "check_pairs",
    "evaluation_batches",
    "open_pairs",
    "read_mask",
    "read_rgb",
    "resize_image",
    "resize_labels",
    "to_png",
    "training_batches",
    "write_synthetic",
]
