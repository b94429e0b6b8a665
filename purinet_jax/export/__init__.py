"""A network as one file for other programs: StableHLO, which JAX alone runs, and ONNX, which onnxruntime and others do.
Weights are within, BatchNorm is folded, and of the maps there is the finest alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
