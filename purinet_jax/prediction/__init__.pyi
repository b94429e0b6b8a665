from .files import Job, Result, plan, predict_files
from .predictor import Predictor, load, predict_stream
from .rendering import Style, read_background, render

__all__ = [
    "Job",
    "Predictor",
    "Result",
    "Style",
    "load",
    "plan",
    "predict_files",
    "predict_stream",
    "read_background",
    "render",
]
