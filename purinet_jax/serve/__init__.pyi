from .app import make_app
from .refusals import Limits
from .server import listen, make_server, serve
from .worker import Task, Worker

__all__ = ["Limits", "Task", "Worker", "listen", "make_app", "make_server", "serve"]
