"""The web page and the HTTP interface of `purinet serve`, imported on first use since Starlette is an extra."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
