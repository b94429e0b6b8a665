from .app import Limits, make_app
from .server import listen, serve
from .worker import Worker

__all__ = ["Limits", "Worker", "listen", "make_app", "serve"]
