from .files import Job, Result, plan, predict_files
from .pictures import Style, make_picture, read_background
from .predict import Predictor, load, predict_stream

__all__ = [
    "Job",
    "Predictor",
    "Result",
    "Style",
    "load",
    "make_picture",
    "plan",
    "predict_files",
    "predict_stream",
    "read_background",
]
