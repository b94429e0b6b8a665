"""Weights in files: this package's own, other people's by their names and layouts, what training runs leave, and the
ones that come with the package.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
