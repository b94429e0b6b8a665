"""Photographs and videos in; maps, masks, cut-outs and panels out. `load` and its `Predictor` are for programs, `plan`
and `predict_files` for files. What is handed on is imported when it is first asked for: what is wrong with files can
be said without JAX, at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
