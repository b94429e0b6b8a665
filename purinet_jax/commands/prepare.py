"""`purinet prepare`: builds a published data set for TFDS."""

import argparse
import json
from pathlib import Path

from purinet_jax.commands.arguments import add_object_labels

SUMMARY = "Build a published data set for TFDS."
EXAMPLES = """examples:
  purinet prepare duts --data downloads/ --output datasets
  purinet prepare ecssd --data ECSSD.zip --json
  purinet train --config purnet_resnet50_stage1 --data datasets/duts:train -o runs/stage1

NAME is duts, ecssd, dut_omron, pascal_s, hku_is, xpie or sod. --data is a folder of images next to a folder of masks,
the authors' archives (zip, tar, tar.gz), or a folder that holds either, perhaps among others. A set that exists already
is left as it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("name", metavar="NAME", help="the data set's name")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR|ZIP", help="the downloaded data set")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for sets (default: ~/.local/share/purinet_jax)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable pairs out")
    add_object_labels(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.data.prepare import prepare

    result = prepare(
        arguments.name,
        arguments.data,
        arguments.output,
        skip_bad=arguments.skip_bad,
        object_labels=arguments.object_labels,
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
    outcome = "built" if result["built"] else "exists already, nothing to do"
    print(f"{result['name']}: {counts}, {result['bytes'] / 1e6:,.1f} MB; {outcome}")
    for split in result["splits"]:
        print(f"  purinet {'train' if split == 'train' else 'evaluate'} --data {path}:{split} …")
    builder = f'tfds.builder("{path.name}", data_dir="{path.parent}").as_data_source("{split}")'
    print(f"  import purinet_jax.data.builders, tensorflow_datasets as tfds; {builder}")
    return 0
