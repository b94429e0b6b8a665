"""The command line: `purinet prepare`, `train`, `predict`, `evaluate`, `convert` and `benchmark`.

Each command parses its arguments, calls one function of the package and prints what it returns. What the user gave
and cannot be used is one line on stderr and exit code 2; training that met NaN ends with exit code 1.
"""

import argparse
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from purinet_jax.errors import InputError

PREPARE_EXAMPLES = """examples:
  purinet prepare duts --data downloads/ --output datasets
  purinet prepare duts --data DUTS-TR.zip --superpixels none --json
  purinet train --config configs/purnet_resnet50_stage1.py --data datasets/duts:train -o runs/stage1

NAME is duts, ecssd, dut_omron, pascal_s, hku_is, xpie or sod. DIR is a folder of images beside a folder of masks, or
holds the authors' zips or what was unpacked from them, perhaps among others. The same command again goes on where it
was stopped, and does nothing where the set is there."""
TRAIN_EXAMPLES = """examples:
  purinet train --config configs/purnet_resnet50_stage1.py --data DUTS-TR.zip --init resnet50.safetensors -o runs/stage1
  purinet train --config configs/purnet_resnet50_stage2.py --data DUTS-TR.zip --init runs/stage1 -o runs/stage2
  purinet train --config configs/tiny.py --data DUTS-TR.zip -o runs/small --config.batch_size=8 --config.data.size=224

The same command again goes on where the run in the output folder stopped. SIGTERM and Ctrl-C save first."""
PREDICT_EXAMPLES = """examples:
  purinet predict photo.jpg                                       # photo_map.png
  purinet predict photo.jpg --output-kind cutout                  # photo_cutout.png, transparent around the object
  purinet predict photo.jpg --output-kind cutout --background white -o product.jpg
  purinet predict photos/ 'more/**/*.jpg' -o maps                 # maps/<path below photos or more>/<stem>.png
  purinet predict clip.mp4 --output-kind overlay                  # clip_overlay.mp4
  curl -s https://example.org/photo.jpg | purinet predict - --output-kind mask > mask.png
  purinet predict DUTS-TE-Image/ --checkpoint stage3.pth --no-refine -o maps --batch 8   # the authors' very maps

Folders are searched for images (bmp, jpg, png, ppm, tiff, webp), those within too; hidden files and what an earlier run
wrote are left out. Videos (mp4, webm, gif) must be named or matched, and need the extra: pip install
'purinet_jax[video]'; frames, times and sound stay, but a cut-out without background is a WebM with alpha, which MP4's
sound does not fit in. Two images of one stem (a.jpg, a.png) keep their endings: a.jpg.png, a.png.png. Images are turned
upright and converted to sRGB; pictures have the image's size, panels at most that of the network's square. Nothing is
fetched from the network."""
EVALUATE_EXAMPLES = """examples:
  purinet evaluate --checkpoint runs/stage3 --data DUTS-TE.zip
  purinet evaluate --checkpoint runs/stage3 --data DUTS-TE.zip ECSSD/ --json > numbers.json
  purinet evaluate --maps U2Net/ BASNet=downloads/basnet.zip --masks DUTS-TE/DUTS-TE-Mask --plots plots
  purinet evaluate --checkpoint ours=runs/stage3 --maps U2Net/ --data DUTS-TE.zip --per-image images.csv --latex

Every number follows one of two protocols, and numbers of different protocols cannot be compared. purnet is the released
code's, which the paper's tables use: all but a mask's brightest value is ground, F is that of the mean precision and
recall, maps of another size are resized. pysod is PySODMetrics', which most of the field uses: object is above 128, F
is the mean of the images', maps of another size are refused.
wF is weighted F, S the S-measure; F and E are the largest and the mean over all thresholds, and those at twice the
map's mean (adp); BIoU is the boundary IoU of the map cut at half.
Maps have the names of their masks but for the ending; for several sets, each set's lie in a folder of its name.
Methods are called after their folders or files, and as NAME if written NAME=PATH; so are data sets. The paper's numbers
stand beside those of a set that has the published name and number of pairs."""
CONVERT_EXAMPLES = """examples:
  purinet convert stage3.pth stage3.safetensors
  purinet convert resnet50-11ad3fa6.pth resnet50.safetensors
  purinet convert runs/stage3 stage3.safetensors
  purinet convert runs/lite purnet_lite.safetensors --half
  purinet convert stage3.safetensors authors.npz --names authors"""
BENCHMARK_EXAMPLES = """examples:
  purinet benchmark
  purinet benchmark --backbone mobilenet_v2 --size 224 --repeats 20 > benchmark.json
  purinet benchmark --data DUTS-TR.zip
  purinet benchmark --superpixels DUTS-TR.zip
  purinet benchmark --metrics
  purinet benchmark --predict"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="purinet", description="PurNet salient object detection: train, predict, evaluate."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, summary: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    prepare = command("prepare", "Build a data set for TFDS, superpixels included.", PREPARE_EXAMPLES)
    prepare.add_argument("name", metavar="NAME", help="the data set's name")
    prepare.add_argument("--data", required=True, type=Path, metavar="DIR|ZIP", help="what there is of the data set")
    prepare.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for sets (default: ~/.local/share/purinet_jax)"
    )
    prepare.add_argument(
        "--superpixels",
        default="slic",
        metavar="slic|DIR|none",
        help="computed by SLIC (the default), the authors' .mat files or PNG files in DIR, or none",
    )
    prepare.add_argument("--skip-bad", action="store_true", help="leave unreadable pairs out")
    prepare.add_argument("--json", action="store_true", help="print JSON")
    prepare.add_argument("--quiet", action="store_true", help="no progress bars")

    train = command("train", "Train a network, or go on with a run.", TRAIN_EXAMPLES)
    train.add_argument("--config", required=True, metavar="FILE.py", help="a file with get_config(); "
                       "--config.KEY=VALUE overrides a setting")  # fmt: skip
    train.add_argument(
        "--data", required=True, type=Path, metavar="DIR|ZIP", help="training pairs, or a prepared set as DIR:train"
    )
    train.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="the run's folder")
    train.add_argument("--validation", type=Path, metavar="DIR|ZIP", help="pairs to measure the error on")
    train.add_argument("--init", type=Path, metavar="RUN|FILE", help="weights to start from")
    train.add_argument(
        "--superpixels",
        default="slic",
        metavar="DIR",
        help="the authors' .mat files (default: computed by SLIC)",
    )
    train.add_argument("--skip-bad", action="store_true", help="leave unreadable pairs out")
    train.add_argument(
        "--without-leaks",
        action="store_true",
        help="leave out the image of DUTS-TR that is in DUTS-TE, and second copies of images",
    )
    train.add_argument("--quiet", action="store_true", help="no progress bars")

    predict = command("predict", "Find the salient objects in images and videos.", PREDICT_EXAMPLES)
    predict.add_argument("images", nargs="+", metavar="IMAGE|DIR|PATTERN|-", help="files, folders, patterns, or stdin")
    predict.add_argument(
        "-o",
        "--output",
        metavar="DIR|FILE|-",
        help="a folder, a file for one image, or stdout (default: <stem>_<kind>.png beside each image)",
    )
    predict.add_argument(
        "--output-kind",
        choices=("map", "mask", "cutout", "overlay", "attention"),
        default="map",
        help="grey map (the default), black-and-white mask, the object cut out, the image with the object tinted, or "
        "panels of image, map, promotion, rectification and error that show why",
    )
    predict.add_argument(
        "--threshold", type=_share, default=0.5, help="of masks, and of cut-outs' edges, between 0 and 1 (default 0.5)"
    )
    predict.add_argument(
        "--background",
        metavar="COLOR|IMAGE",
        help="put cut-outs on a colour (white, '#80ff00') or on an image, which is scaled to cover",
    )
    predict.add_argument("--format", choices=("png", "jpg", "webp", "tiff"), help="of images (default png)")
    there = predict.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace files that exist (they are refused otherwise)")
    there.add_argument("--skip-existing", action="store_true", help="leave files that exist, and skip their images")
    predict.add_argument(
        "--no-refine",
        action="store_true",
        help="resize maps as the authors' code does; otherwise edges follow those of images larger than the network's "
        "square",
    )
    predict.add_argument(
        "--json", action="store_true", help="print a line of JSON per image: input and output, or error"
    )
    predict.add_argument(
        "--checkpoint",
        type=Path,
        metavar="RUN|FILE",
        help="a run's folder or a file of weights (default: the package's)",
    )
    _network_arguments(predict)

    evaluate = command("evaluate", "Measure networks, or maps from files, on data sets.", EVALUATE_EXAMPLES)
    evaluate.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="RUN|FILE",
        help="networks: runs' folders or files of weights (default without --maps: the weights in this package)",
    )
    evaluate.add_argument("--maps", nargs="+", default=[], metavar="DIR|ZIP", help="maps from files, one method each")
    truth = evaluate.add_mutually_exclusive_group(required=True)
    truth.add_argument("--data", nargs="+", metavar="DIR|ZIP", help="data sets: pairs of image and mask")
    truth.add_argument("--masks", metavar="DIR|ZIP", help="masks alone, for --maps")
    evaluate.add_argument(
        "--protocol", choices=("purnet", "pysod", "both"), default="both", help="whose rules to follow (default both)"
    )
    evaluate.add_argument(
        "--skip-unpaired", action="store_true", help="leave out files without a counterpart, and say how many"
    )
    form = evaluate.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with all digits, instead of a table")
    form.add_argument("--csv", action="store_true", help="print comma-separated values, with all digits")
    form.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    form.add_argument("--latex", action="store_true", help="print a table in LaTeX (package booktabs)")
    evaluate.add_argument(
        "--per-image",
        type=Path,
        metavar="FILE.csv",
        help="write each image's numbers, the worst mean absolute error (of the first protocol) first",
    )
    evaluate.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help="draw curves of precision, recall, F and E, and the 16 worst images (by the same order)",
    )
    evaluate.add_argument(
        "--workers",
        type=_not_negative,
        default=os.cpu_count() or 1,
        help="processes that measure (default: as many as CPUs; 0: none but this one)",
    )
    _network_arguments(evaluate)

    convert = command("convert", "Convert weights of PyTorch and Keras to this package's, and back.", CONVERT_EXAMPLES)
    convert.add_argument("source", type=Path, metavar="SOURCE", help=".pth, .npz, .safetensors or a run's folder")
    convert.add_argument("destination", type=Path, metavar="DEST", help=".safetensors or .npz")
    convert.add_argument("--half", action="store_true", help="store numbers as float16, in half of the space")
    convert.add_argument(
        "--names", choices=("purinet", "authors"), default="purinet", help="whose tensor names DEST has"
    )

    benchmark = command("benchmark", "Measure speed and memory; prints JSON.", BENCHMARK_EXAMPLES)
    benchmark.add_argument("--backbone", default="resnet50", choices=("resnet50", "vgg16", "mobilenet_v2"))
    benchmark.add_argument("--channels", type=_positive, default=128)
    benchmark.add_argument("--size", type=_positive, default=320, help="side of the images (default 320)")
    benchmark.add_argument("--batch", type=_positive, default=2, help="images in a train step (default 2)")
    benchmark.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    benchmark.add_argument("--repeats", type=_positive, default=7, help="timed runs of each (default 7)")
    instead = benchmark.add_mutually_exclusive_group()
    instead.add_argument(
        "--superpixels",
        type=Path,
        metavar="DIR|ZIP",
        help="measure superpixels instead, on these pairs, and the train step with each kind of them",
    )
    instead.add_argument(
        "--data", type=Path, metavar="DIR|ZIP", help="measure the input pipeline instead, on these pairs"
    )
    instead.add_argument("--metrics", action="store_true", help="measure the metrics instead, beside PySODMetrics")
    instead.add_argument(
        "--predict", action="store_true", help="measure `purinet predict` instead, with the package's weights"
    )
    benchmark.add_argument(
        "--images",
        type=_positive,
        help="images measured on (default: 100 superpixels, 960 data, 20 metrics, 300 predict)",
    )
    return parser


def _network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=_positive, default=1, help="images at a time (default 1)")
    parser.add_argument(
        "--size",
        type=_positive,
        help="side that images are squashed to (default: that of training, or 320)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _named(text: str) -> tuple[str | None, Path]:
    """NAME=PATH in its parts; no name where there is only a path, which may hold an equals sign itself."""
    name, _, path = text.partition("=")
    if not name or not path or "/" in name or Path(text).exists():
        return None, Path(text)
    return name, Path(path)


def load_config(path: str, overrides: Sequence[str]) -> Any:
    """The ConfigDict of a file's `get_config()`, with `--config.KEY=VALUE` overrides.

    The file may import others beside it. Raises `InputError` for a missing file, an unknown key or a bad value.
    """
    from absl import flags
    from ml_collections import config_flags

    if not Path(path).is_file():
        raise InputError(f"{path}: no such configuration file")
    specification = importlib.util.spec_from_file_location(Path(path).stem, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(Path(path).parent.absolute()))
    try:
        specification.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever the user's file raises is the user's to read
        raise InputError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        sys.path.pop(0)
    # A FlagValues of its own: parsing the program's other arguments is not absl's business.
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["purinet", *overrides])
        values(["purinet", *overrides])
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise InputError(f"{path}: {' '.join(str(reason).split())}") from error
    return config


def _prepare(arguments: argparse.Namespace) -> int:
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


def _train(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from purinet_jax.memory import keep_freed_memory
    from purinet_jax.training.train import NonFiniteLoss, train

    keep_freed_memory()
    config = load_config(arguments.config, overrides)
    try:
        train(
            config,
            arguments.data,
            arguments.output,
            validation=arguments.validation,
            init=arguments.init,
            superpixels=arguments.superpixels,
            skip_bad=arguments.skip_bad,
            without_leaks=arguments.without_leaks,
            progress=not arguments.quiet,
        )
    except NonFiniteLoss as error:
        print(f"purinet: {error}", file=sys.stderr)
        return 1
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from contextlib import closing

    from purinet_jax.prediction.files import ENDINGS, STANDARD, Style, plan, predict_files, read_background

    kind = arguments.output_kind
    if arguments.background is not None and kind != "cutout":
        raise InputError(f"--background: is for --output-kind cutout, not {kind}")
    background = None if arguments.background is None else read_background(arguments.background)
    ending = ENDINGS.get(arguments.format)
    jobs = plan(
        arguments.images,
        arguments.output,
        kind=kind,
        ending=ending,
        transparent=kind == "cutout" and background is None,
        existing="overwrite" if arguments.overwrite else "skip" if arguments.skip_existing else "refuse",
    )
    if arguments.json and jobs and jobs[0].output == STANDARD:
        raise InputError("--json: the standard output is the picture's; give -o a file or folder")
    if not jobs:
        print("all there already, nothing to do", file=sys.stderr)
        return 0
    # Only now, because it imports JAX.
    from purinet_jax.prediction.predict import load, show_progress

    predictor = load(arguments.checkpoint, arguments.size)
    style = Style(kind, arguments.threshold, background, not arguments.no_refine, ending or ".png")
    done: list[Path] = []
    errors: list[str] = []
    progress = not arguments.quiet
    results = predict_files(predictor, jobs, style, batch_size=arguments.batch, progress=progress and len(jobs) == 1)
    with closing(results):
        for result in show_progress(results, len(jobs), progress and len(jobs) > 1):
            if result.error is None:
                done.append(result.job.output)
            else:
                errors.append(result.error)
            if arguments.json:
                place = {"output": str(result.job.output)} if result.error is None else {"error": result.error}
                print(json.dumps({"input": str(result.job.source), **place}), flush=True)
    for error in errors:  # behind the bar, which they would tear apart
        print(f"purinet: {error}", file=sys.stderr)
    if done and STANDARD not in done and not arguments.json and not arguments.quiet:
        print(_whereabouts(done, kind, arguments.output))
    return 2 if errors else 0


def _whereabouts(files: Sequence[Path], kind: str, output: str | None) -> str:
    """One line that says where pictures are."""
    if len(files) == 1:
        return str(files[0])
    named = f"{len(files):,} files"
    return f"{named} in {output}" if output else f"{named} beside the images, as <name>_{kind}{files[0].suffix}"


def _evaluate(arguments: argparse.Namespace) -> int:
    from purinet_jax.evaluation.evaluate import PROTOCOLS, Maps, Network, evaluate, open_data, open_maps, open_masks
    from purinet_jax.evaluation.tables import (
        notes,
        per_image_csv,
        table_rows,
        to_csv,
        to_json,
        to_latex,
        to_markdown,
        to_text,
    )

    # What is asked for must have a place before minutes are spent on it.
    if arguments.per_image is not None and not arguments.per_image.absolute().parent.is_dir():
        raise InputError(f"{arguments.per_image}: its folder does not exist")
    if arguments.plots is not None:
        from purinet_jax.evaluation.plots import open_plots, write_plots

        open_plots(arguments.plots)
    if arguments.masks is not None:
        name, path = _named(arguments.masks)
        truths = [open_masks(path, name)]
    else:
        truths = [open_data(path, name, arguments.skip_unpaired) for name, path in map(_named, arguments.data)]
    methods: list[Network | Maps] = []
    if arguments.checkpoint or not arguments.maps:
        from purinet_jax.prediction.predict import SHIPPED, load

        for name, path in map(_named, arguments.checkpoint):
            network = load(path, arguments.size)
            methods.append(Network(name or (path.resolve().name if path.is_dir() else path.stem), network))
        if not arguments.checkpoint:
            methods.append(Network(SHIPPED.stem, load(None, arguments.size)))
    methods += [open_maps(path, name) for name, path in map(_named, arguments.maps)]
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
    rows, remarks = table_rows(evaluations), notes(evaluations)
    forms = {"json": to_json, "csv": to_csv, "markdown": to_markdown, "latex": to_latex}
    form = next((forms[name] for name in forms if getattr(arguments, name)), to_text)
    print(form(rows), end="")
    for remark in remarks:
        print(remark, file=sys.stdout if form is to_text else sys.stderr)
    if arguments.per_image is not None:
        from purinet_jax.data.images import write_atomically

        text = per_image_csv(evaluations).encode("utf-8", "surrogateescape")
        write_atomically(arguments.per_image, text)
    if arguments.plots is not None:
        write_plots(arguments.plots, evaluations, methods, truths, batch_size=arguments.batch)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from purinet_jax.weights.convert import convert_file

    print(convert_file(arguments.source, arguments.destination, arguments.names, arguments.half))
    return 0


def _benchmark(arguments: argparse.Namespace) -> int:
    settings = {
        "backbone": arguments.backbone,
        "channels": arguments.channels,
        "size": arguments.size,
        "batch_size": arguments.batch,
        "dtype": arguments.dtype,
        "repeats": arguments.repeats,
    }
    if arguments.superpixels is not None:
        from purinet_jax.benchmarks.superpixels import benchmark_superpixels

        result = benchmark_superpixels(arguments.superpixels, images=arguments.images or 100, **settings)
    elif arguments.data is not None:
        from purinet_jax.benchmarks.data import benchmark_data
        from purinet_jax.memory import keep_freed_memory

        keep_freed_memory()  # as `purinet train` does
        images, repeats = arguments.images or 960, arguments.repeats
        result = benchmark_data(arguments.data, size=arguments.size, images=images, repeats=repeats)
    elif arguments.metrics:
        from purinet_jax.benchmarks.metrics import benchmark_metrics

        result = benchmark_metrics(images=arguments.images or 20, repeats=arguments.repeats)
    elif arguments.predict:
        from purinet_jax.benchmarks.predict import benchmark_predict

        result = benchmark_predict(size=arguments.size, images=arguments.images or 300, repeats=arguments.repeats)
    else:
        from purinet_jax.benchmarks.network import benchmark_network

        result = benchmark_network(**settings)
    print(json.dumps(result, indent=2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = [item for item in rest if item.startswith("--config.")] if arguments.command == "train" else []
    if len(overrides) != len(rest):
        parser.error(f"unrecognized arguments: {' '.join(item for item in rest if item not in overrides)}")
    if arguments.version:
        from purinet_jax import __version__

        print(__version__)
        return 0
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    # Libraries' own chatter (Orbax logs each save) is not the user's; ours is.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("purinet_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Compiled programs are kept between runs: a run that goes on, or a second picture, starts at once.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purinet_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    # By JAX's default of a second, a fast machine would compile a small network at each start.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    # TensorStore and XLA write notes of their own to stderr before Python can filter them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        if arguments.command == "train":
            return _train(arguments, overrides)
        run = {
            "prepare": _prepare,
            "predict": _predict,
            "evaluate": _evaluate,
            "convert": _convert,
            "benchmark": _benchmark,
        }
        return run[arguments.command](arguments)
    except InputError as error:
        print(f"purinet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("purinet: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
