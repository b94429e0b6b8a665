"""`purinet export`: a network as a file for other programs."""

import argparse
import sys
from pathlib import Path

from purinet_jax.commands.arguments import add_checkpoint, positive

SUMMARY = "Export a network to StableHLO or ONNX; prints a program that runs it."
EXAMPLES = """examples:
  purinet export --to stablehlo purnet.stablehlo         # the package's weights, for JAX: CPU, CUDA and TPU
  purinet export --to onnx purnet.onnx                   # for onnxruntime and others
  purinet export --to onnx --layout rembg rembg.onnx     # for rembg: rembg i -m u2net_custom -x …
  purinet export --to onnx --checkpoint runs/mine --size 256 mine.onnx
  purinet export --to stablehlo --checkpoint stage3.pth released.stablehlo > run.py

The size is fixed, the batch is not. StableHLO takes uint8 RGB [batch, size, size, 3] and returns [batch, size, size];
ONNX takes normalised float32 [batch, 3, size, size] (mean and std in its metadata) and returns [batch, 1, size, size].
Maps are from 0 to 1. ONNX needs the extra: pip install 'purinet_jax[onnx]'."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--to", required=True, choices=("stablehlo", "onnx"), help="the format")
    parser.add_argument(
        "--layout", choices=("rembg",), help="of onnx: input and output as rembg's u2net_custom has them"
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--size", type=positive, help="side that images are resized to (default: that of training, or 320)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.export.export_file import export_file

    program = export_file(
        arguments.file,
        arguments.to,
        arguments.checkpoint,
        arguments.size,
        layout=arguments.layout,
        overwrite=arguments.overwrite,
    )
    print(f"{arguments.file}: {arguments.file.stat().st_size / 1e6:,.1f} MB; to run it:\n", file=sys.stderr)
    print(program, end="")
    return 0
