"""`purinet prepare`: a published data set, built once with its superpixels."""

import argparse
import json
from pathlib import Path

SUMMARY = "Build a data set for TFDS, superpixels included."
EXAMPLES = """examples:
  purinet prepare duts --data downloads/ --output datasets
  purinet prepare duts --data DUTS-TR.zip --superpixels none --json
  purinet train --config purnet_resnet50_stage1 --data datasets/duts:train -o runs/stage1

NAME is duts, ecssd, dut_omron, pascal_s, hku_is, xpie or sod. DIR is a folder of images beside a folder of masks, or
holds the authors' archives (zip, tar, tar.gz) or what was unpacked from them, perhaps among others. The same command
again goes on where it was stopped, and does nothing where the set is there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("name", metavar="NAME", help="the data set's name")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR|ZIP", help="what there is of the data set")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for sets (default: ~/.local/share/purinet_jax)"
    )
    parser.add_argument(
        "--superpixels",
        default="slic",
        metavar="slic|DIR|none",
        help="computed by SLIC (the default), the authors' .mat files or PNG files in DIR, or none",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable pairs out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.data.prepare import prepare

    result = prepare(
        arguments.name,
        arguments.data,
        arguments.output,
        superpixels=None if arguments.superpixels == "none" else arguments.superpixels,
        skip_bad=arguments.skip_bad,
        progress=not arguments.quiet,
    )
    if arguments.json:
        print(json.dumps(result))
        return 0
    path = Path(result["path"])
    counts = ", ".join(
        f"{split} {values['pairs']:,} of {values['expected']:,} pairs"
        + (f" ({len(values['left_out'])} left out)" if values["left_out"] else "")
        for split, values in result["splits"].items()
    )
    superpixels = {"slic": "superpixels by SLIC", "given": "the superpixels given", "none": "no superpixels"}
    said = "built" if result["built"] else "there already, nothing to do"
    print(f"{result['name']}: {counts}, {superpixels[result['superpixels']]}, {result['bytes'] / 1e6:,.1f} MB; {said}")
    for split in result["splits"]:
        print(f"  purinet {'train' if split == 'train' else 'evaluate'} --data {path}:{split} …")
    builder = f'tfds.builder("{path.name}", data_dir="{path.parent}").as_data_source("{split}")'
    print(f"  import purinet_jax.data.builders, tensorflow_datasets as tfds; {builder}")
    return 0
