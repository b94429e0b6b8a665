"""Measures methods on data sets by the field's protocols and writes tables, with the paper's numbers, and plots. Maps
from files are measured without JAX, whose import takes seconds in each worker process.
"""

from purinet_jax.evaluation.evaluate import PROTOCOLS, Evaluation, evaluate, examples
from purinet_jax.evaluation.methods import GroundTruth, Network, SavedMaps, open_data, open_maps, open_masks
from purinet_jax.evaluation.metrics import Measures, Totals, measure

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "GroundTruth",
    "Measures",
    "Network",
    "SavedMaps",
    "Totals",
    "evaluate",
    "examples",
    "measure",
    "open_data",
    "open_maps",
    "open_masks",
]
