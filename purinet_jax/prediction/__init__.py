"""Predict on images and videos: `load` and its `Predictor` for programs, `plan` and `predict_files` for files.

Names are imported at their first use, so that bad files are refused without importing JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
