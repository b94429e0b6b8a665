"""`purinet convert`: weights of other projects into this package's, and back."""

import argparse
from pathlib import Path

from purinet_jax.commands.arguments import positive

SUMMARY = "Convert weights of PyTorch and Keras to this package's, and back."
EXAMPLES = """examples:
  purinet convert stage3.pth stage3.safetensors
  purinet convert resnet50-11ad3fa6.pth resnet50.safetensors
  purinet convert runs/stage3 stage3.safetensors
  purinet convert runs/lite purnet_lite.safetensors --half --size 288
  purinet convert stage3.safetensors authors.safetensors --names authors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help=".pth, .npz, .safetensors, a run's folder, context or lite"
    )
    parser.add_argument("destination", type=Path, metavar="DEST", help=".safetensors")
    parser.add_argument("--half", action="store_true", help="store numbers as float16")
    parser.add_argument(
        "--size", type=positive, help="side of the images that the network is for (default: what SOURCE says)"
    )
    parser.add_argument(
        "--names", choices=("purinet", "authors"), default="purinet", help="whose tensor names to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.weights.files import convert_file

    print(
        convert_file(
            arguments.source,
            arguments.destination,
            arguments.names,
            arguments.half,
            arguments.size,
            overwrite=arguments.overwrite,
        )
    )
    return 0
