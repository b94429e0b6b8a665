"""The network of the paper: backbones, layers, the two attentions and forward passes, as pure functions of variables
and arrays that know nothing of files or training. Names are imported on first use: a traced program runs without Flax.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
