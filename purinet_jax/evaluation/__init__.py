"""How good maps are: methods measured on data sets by the field's protocols, the paper's numbers beside them, as tables
and plots. Maps from files are measured without JAX, which worker processes would wait for.
"""

from purinet_jax.evaluation.evaluate import PROTOCOLS, Evaluation, evaluate, examples
from purinet_jax.evaluation.methods import GroundTruth, Maps, Network, open_data, open_maps, open_masks
from purinet_jax.evaluation.metrics import Measures, Totals, measure

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "GroundTruth",
    "Maps",
    "Measures",
    "Network",
    "Totals",
    "evaluate",
    "examples",
    "measure",
    "open_data",
    "open_maps",
    "open_masks",
]
