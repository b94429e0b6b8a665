"""Weights in files: this package's own, other people's by their names and layouts, what training runs leave, and the
ones that come with the package.
"""

from purinet_jax.weights.convert import (
    convert_file,
    from_authors,
    from_backbone,
    load_file,
    load_variables,
    save_variables,
    to_authors,
)
from purinet_jax.weights.shipped import SHIPPED
from purinet_jax.weights.tensor_files import read_metadata, read_tensors, write_tensors

__all__ = [
    "SHIPPED",
    "convert_file",
    "from_authors",
    "from_backbone",
    "load_file",
    "load_variables",
    "read_metadata",
    "read_tensors",
    "save_variables",
    "to_authors",
    "write_tensors",
]
