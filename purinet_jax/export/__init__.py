"""Export of a network with its weights to one file: StableHLO for JAX, ONNX for onnxruntime and others. BatchNorm is
folded, and only the finest map is computed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
