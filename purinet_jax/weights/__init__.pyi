from .convert import from_authors, from_backbone, to_authors
from .files import convert_file, load_file, load_variables, save_variables
from .shipped import NETWORKS, shipped_file
from .tensor_files import read_metadata, read_tensors, write_tensors

__all__ = [
    "NETWORKS",
    "convert_file",
    "from_authors",
    "from_backbone",
    "load_file",
    "load_variables",
    "read_metadata",
    "read_tensors",
    "save_variables",
    "shipped_file",
    "to_authors",
    "write_tensors",
]
