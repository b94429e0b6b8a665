from .backgrounds import Blur, read_background
from .files import Job, Result, plan, predict_files
from .predictor import Predictor, load, predict_stream, remove_background
from .rendering import Style, render

__all__ = [
    "Blur",
    "Job",
    "Predictor",
    "Result",
    "Style",
    "load",
    "plan",
    "predict_files",
    "predict_stream",
    "read_background",
    "remove_background",
    "render",
]
