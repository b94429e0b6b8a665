from .export_file import export_file
from .onnx_file import export_onnx
from .stablehlo import export_stablehlo

__all__ = [
    "export_file",
    "export_onnx",
    "export_stablehlo",
]
