"""The network of the paper: extractors, the layers between, the two attentions, and what it answers to images. Pure
functions of variables and arrays; nothing here knows of files or of training. What is
handed on is imported when it is first asked for: a program that is traced already does without Flax.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
