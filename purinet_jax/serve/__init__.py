"""The page and the HTTP interface of `purinet serve`: pictures in, maps and cut-outs out, one network for all who ask.
What is handed on is imported when it is first asked for, since Starlette and uvicorn are an extra.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
