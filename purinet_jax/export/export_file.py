"""Writes exported files; imports JAX only once the request is valid."""

import importlib.util
import os
from pathlib import Path
from typing import Literal, get_args

from purinet_jax.errors import InputError
from purinet_jax.files import check_output_file, write_atomically

Kind = Literal["stablehlo", "onnx"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""The formats."""

Layout = Literal["rembg"]


def export_file(
    path: str | os.PathLike[str],
    kind: Kind,
    checkpoint: str | os.PathLike[str] | None = None,
    size: int | None = None,
    *,
    layout: Layout | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a network to a file that runs without this package, atomically.

    Args:
      path: the file, in a folder that exists.
      kind: "stablehlo" (`export_stablehlo`) or "onnx" (`export_onnx`).
      checkpoint, size: as of `purinet_jax.load`; the file's size is fixed.
      layout: "rembg" for an ONNX model that rembg's session `u2net_custom` runs, of size 320; None for `export_onnx`'s
        own.
      overwrite: replace an existing file.

    Returns:
      A short Python program that runs the file on an image; for rembg, a command.

    Raises:
      InputError: the kind or layout is unknown, the size is not the layout's, `onnx` is not installed, the file exists
        or cannot be written, or the weights cannot be loaded. Nothing is written.
    """
    path = Path(path)
    if kind not in KINDS:
        raise InputError(f"{kind}: networks are exported to {' or '.join(KINDS)}")
    if layout is not None and (layout not in get_args(Layout) or kind != "onnx"):
        raise InputError(f"--layout {layout}: there is only rembg, and only of onnx")
    if kind == "onnx" and importlib.util.find_spec("onnx") is None:
        raise InputError("onnx: is not installed: pip install 'purinet_jax[onnx]'")
    check_output_file(path, overwrite)
    from purinet_jax.prediction.predictor import load

    if kind == "onnx":
        from purinet_jax.export.onnx_file import REMBG_SIZE, export_onnx, onnx_program, rembg_command

        if layout == "rembg":
            if size not in (None, REMBG_SIZE):
                raise InputError(f"--size {size}: rembg resizes images to {REMBG_SIZE}")
            write_atomically(path, export_onnx(load(checkpoint, REMBG_SIZE), rembg=True))
            return rembg_command(str(path.absolute()))
        predictor = load(checkpoint, size)
        write_atomically(path, export_onnx(predictor))
        return onnx_program(str(path), predictor)
    from purinet_jax.export.stablehlo import export_stablehlo, stablehlo_program

    predictor = load(checkpoint, size)
    write_atomically(path, export_stablehlo(predictor))
    return stablehlo_program(str(path), predictor.size)
