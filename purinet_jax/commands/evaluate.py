"""`purinet evaluate`: measures networks, or maps from files, on data sets."""

import argparse
import sys
from pathlib import Path

from purinet_jax.commands.arguments import add_network_arguments, add_object_labels, named, not_negative, say_devices
from purinet_jax.devices import describe_cpu, describe_devices, usable_cores
from purinet_jax.files import check_output_file, write_atomically

SUMMARY = "Measure networks, or maps from files, on data sets."
EXAMPLES = """examples:
  purinet evaluate --checkpoint runs/stage3 --data DUTS-TE.zip
  purinet evaluate --checkpoint runs/stage3 --data DUTS-TE.zip ECSSD/ --json > numbers.json
  purinet evaluate --maps U2Net/ BASNet=downloads/basnet.zip --masks DUTS-TE/DUTS-TE-Mask --plots plots
  purinet evaluate --checkpoint ours=runs/stage3 --maps U2Net/ --data DUTS-TE.zip --per-image images.csv --latex

Numbers of different protocols cannot be compared. purnet is that of the released code and the paper's tables: all but a
mask's brightest value is background, F is that of the mean precision and recall, maps of another size are resized.
pysod is that of PySODMetrics, which most of the field uses: the object is above 128, F is the mean of the images', maps
of another size are refused.
wF is weighted F, S the S-measure; F and E are the largest and the mean over all thresholds, and those at twice the
map's mean (adp); BIoU is the boundary IoU of the map cut at half.
Maps have the names of their masks but for the extension; for several data sets, in folders named after them. Methods
and data sets are named after their folders or files, or NAME if written NAME=PATH. The paper's numbers are added to
those of a data set with the published name and number of pairs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="RUN|FILE|NAME",
        help="networks: folders of runs, files of weights, or context (the default without --maps) or lite",
    )
    parser.add_argument("--maps", nargs="+", default=[], metavar="DIR|ZIP", help="maps from files, one method each")
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--data", nargs="+", metavar="DIR|ZIP", help="data sets: pairs of image and mask")
    truth.add_argument("--masks", metavar="DIR|ZIP", help="masks without images, for --maps")
    parser.add_argument(
        "--protocol", choices=("purnet", "pysod", "both"), default="both", help="protocol of the numbers (default both)"
    )
    parser.add_argument(
        "--skip-unpaired", action="store_true", help="leave out files without a counterpart, and report them"
    )
    add_object_labels(parser)
    form = parser.add_mutually_exclusive_group()
    for name, what in {
        "json": "JSON, with all digits, instead of a table",
        "csv": "comma-separated values, with all digits",
        "markdown": "a table in Markdown",
        "latex": "a table in LaTeX (package booktabs)",
    }.items():
        form.add_argument(
            f"--{name}", action="store_const", const=name, default="text", dest="form", help=f"print {what}"
        )
    parser.add_argument(
        "--per-image",
        type=Path,
        metavar="FILE.csv",
        help="write each image's numbers, by descending mean absolute error (of the first protocol)",
    )
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="draw curves of precision, recall, F and E, and the 16 worst images"
    )
    parser.add_argument(
        "--workers",
        type=not_negative,
        default=usable_cores(),
        help="worker processes (default: as many as CPU cores; 0: none)",
    )
    add_network_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.evaluation import tables
    from purinet_jax.evaluation.evaluate import PROTOCOLS, evaluate
    from purinet_jax.evaluation.methods import Network, SavedMaps, open_data, open_maps, open_masks

    # Checked before minutes are spent on measuring.
    if arguments.per_image is not None:
        check_output_file(arguments.per_image)
    if arguments.plots is not None:
        from purinet_jax.evaluation.plots import check_plots

        check_plots(arguments.plots)
    if arguments.masks is not None:
        name, path = named(arguments.masks)
        truths = [open_masks(path, name, arguments.object_labels)]
    else:
        truths = [
            open_data(path, name, arguments.skip_unpaired, arguments.object_labels)
            for name, path in map(named, arguments.data)
        ]
    methods: list[Network | SavedMaps] = []
    networks = arguments.checkpoint or not arguments.maps
    # Maps from files are measured without JAX.
    uses_jax = networks or arguments.require is not None
    say_devices(describe_devices(arguments.require) if uses_jax else describe_cpu(), arguments.quiet)
    if networks:
        from purinet_jax.prediction.predictor import load
        from purinet_jax.weights.shipped import NETWORKS

        for name, path in map(named, arguments.checkpoint):
            network = load(path, arguments.size)
            methods.append(Network(name or (path.resolve().name if path.is_dir() else path.stem), network))
        if not arguments.checkpoint:
            methods.append(Network(f"purnet_{NETWORKS[0]}", load(None, arguments.size)))
    methods += [open_maps(path, name) for name, path in map(named, arguments.maps)]
    evaluations = evaluate(
        methods,
        truths,
        protocols=PROTOCOLS if arguments.protocol == "both" else (arguments.protocol,),
        batch_size=arguments.batch,
        workers=arguments.workers,
        skip_unpaired=arguments.skip_unpaired,
        per_image=arguments.per_image is not None,
        progress=not arguments.quiet,
    )
    print(getattr(tables, f"to_{arguments.form}")(tables.table_rows(evaluations)), end="")
    for note in tables.notes(evaluations):
        print(note, file=sys.stdout if arguments.form == "text" else sys.stderr)
    if arguments.per_image is not None:
        write_atomically(arguments.per_image, tables.per_image_csv(evaluations).encode("utf-8", "surrogateescape"))
    if arguments.plots is not None:
        from purinet_jax.evaluation.plots import write_plots

        write_plots(arguments.plots, evaluations, methods, truths, batch_size=arguments.batch)
    return 0
