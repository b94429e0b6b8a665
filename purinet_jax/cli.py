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
  purinet predict photo.jpg --checkpoint runs/stage3 -o maps
  purinet predict photos/ more/one.png --checkpoint stage3.pth -o maps --batch 8"""
EVALUATE_EXAMPLES = """examples:
  purinet evaluate --checkpoint runs/stage3 --data DUTS-TE.zip
  purinet evaluate --checkpoint runs/stage3 --data DUTS-TE.zip --json"""
CONVERT_EXAMPLES = """examples:
  purinet convert stage3.pth stage3.safetensors
  purinet convert resnet50-11ad3fa6.pth resnet50.safetensors
  purinet convert runs/stage3 stage3.safetensors
  purinet convert stage3.safetensors authors.npz --names authors"""
BENCHMARK_EXAMPLES = """examples:
  purinet benchmark
  purinet benchmark --backbone mobilenet_v2 --size 224 --repeats 20 > benchmark.json
  purinet benchmark --data DUTS-TR.zip
  purinet benchmark --superpixels DUTS-TR.zip
  purinet benchmark --metrics"""


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

    predict = command("predict", "Find the salient objects in images.", PREDICT_EXAMPLES)
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE|DIR")
    predict.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="where maps go, as PNG")
    _checkpoint_arguments(predict)

    evaluate = command("evaluate", "Measure a network on a data set.", EVALUATE_EXAMPLES)
    evaluate.add_argument("--data", required=True, type=Path, metavar="DIR|ZIP", help="pairs of image and mask")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    _checkpoint_arguments(evaluate)

    convert = command("convert", "Convert weights of PyTorch and Keras to this package's, and back.", CONVERT_EXAMPLES)
    convert.add_argument("source", type=Path, metavar="SOURCE", help=".pth, .npz, .safetensors or a run's folder")
    convert.add_argument("destination", type=Path, metavar="DEST", help=".safetensors or .npz")
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
    benchmark.add_argument(
        "--images", type=_positive, help="images measured on (default: 100 superpixels, 960 data, 20 metrics)"
    )
    return parser


def _checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="RUN|FILE",
        help="a run's folder or a file of weights",
    )
    parser.add_argument("--batch", type=_positive, default=1, help="images at a time (default 1)")
    parser.add_argument(
        "--size", type=_positive, help="side that images are squashed to (default: that of training, or 320)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


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
    from purinet_jax.train import NonFiniteLoss, train

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
    from purinet_jax.predict import load, predict_files

    failures = predict_files(
        load(arguments.checkpoint, arguments.size),
        arguments.images,
        arguments.output,
        batch_size=arguments.batch,
        progress=not arguments.quiet,
    )
    for failure in failures:
        print(f"purinet: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from purinet_jax.data import open_pairs
    from purinet_jax.evaluate import evaluate
    from purinet_jax.predict import load

    pairs = open_pairs(arguments.data)
    result = evaluate(
        load(arguments.checkpoint, arguments.size), pairs, batch_size=arguments.batch, progress=not arguments.quiet
    )
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"MAE {result['mae']:.4f} ({result['protocol']} protocol, {result['images']} images)")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from purinet_jax.convert import convert_file

    print(convert_file(arguments.source, arguments.destination, arguments.names))
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

        images, repeats = arguments.images or 960, arguments.repeats
        result = benchmark_data(arguments.data, size=arguments.size, images=images, repeats=repeats)
    elif arguments.metrics:
        from purinet_jax.benchmarks.metrics import benchmark_metrics

        result = benchmark_metrics(images=arguments.images or 20, repeats=arguments.repeats)
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
