"""`purinet predict`: find the salient objects in images and videos."""

import argparse
import json
import logging
import sys
from collections.abc import Iterable
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from purinet_jax.commands.arguments import add_checkpoint, add_network_arguments, say_devices, share
from purinet_jax.errors import InputError
from purinet_jax.files import check_output_folder
from purinet_jax.progress import progress_bar

if TYPE_CHECKING:
    from purinet_jax.prediction.rendering import Style

logger = logging.getLogger(__name__)

SUMMARY = "Find the salient objects in images and videos."
EXAMPLES = """examples:
  purinet predict photo.jpg                                       # photo_map.png
  purinet predict photo.jpg --output-kind cutout                  # photo_cutout.png, transparent around the object
  purinet predict photo.jpg --output-kind cutout --keep largest --background white -o product.jpg
  purinet predict photos/ 'more/**/*.jpg' -o maps                 # maps/<path below photos or more>/<stem>.png
  purinet predict clip.mp4 --output-kind overlay                  # clip_overlay.mp4
  purinet predict inbox/ -o outbox --output-kind cutout --watch   # also photos that are added later, until Ctrl-C
  curl -s https://example.org/photo.jpg | purinet predict - --output-kind mask > mask.png
  purinet predict s3://bucket/photos --ray 10.0.0.1:6379 -o s3://bucket/maps.parquet   # on a Ray cluster; docs/ray.md
  purinet predict DUTS-TE-Image/ --checkpoint stage3.pth --no-refine -o maps --batch 8   # exactly the authors' maps

Folders are searched for images and videos recursively; hidden files and what an earlier run wrote are left out, and a
line says how many other files were. Images are what Pillow reads: avif, bmp, gif, jp2, jpg, png, ppm, tiff, webp; of
animations the first frame. Videos (avi, m4v, mkv, mov, mp4, webm, and gif if named or matched) need: pip install
'purinet_jax[video]'. They keep their frames, times and sound, but a cut-out without background is a WebM with alpha,
which cannot hold MP4's sound. Two images of one stem (a.jpg, a.png) keep their endings: a.jpg.png, a.png.png. Outputs
in the folder of their images are called <stem>_<kind>. Images are turned upright and converted to sRGB; outputs have
the image's size, panels at most that of the network's square. Nothing is downloaded."""

NOTHING_TO_DO = "all outputs exist already, nothing to do"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR|PATTERN|-", help="files, folders, patterns, or stdin")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR|FILE|-",
        help="a folder, a file for one image, or stdout (default: <stem>_<kind>.png next to each image)",
    )
    parser.add_argument(
        "--output-kind",
        choices=("map", "mask", "cutout", "overlay", "attention"),
        default="map",
        help="grey map (the default), black-and-white mask, the object cut out, the image with the object tinted, or "
        "panels of image, map, promotion, rectification and error",
    )
    parser.add_argument(
        "--threshold", type=share, default=0.5, help="of masks, and of cut-outs' edges, between 0 and 1 (default 0.5)"
    )
    parser.add_argument(
        "--background",
        metavar="COLOR|IMAGE|blur",
        help="put cut-outs on a colour (white, '#80ff00', half transparent '#80ff0080'), on an image, which is scaled "
        "to cover, or on their own background, blurred (blur, blur:3%% of the longer side)",
    )
    parser.add_argument("--matting", action="store_true", help="estimate the alpha of hair and fur in cut-outs")
    parser.add_argument("--keep", choices=("largest",), help="remove all connected parts of the object but the largest")
    parser.add_argument(
        "--min-area", default="0", metavar="SHARE", help="remove connected parts smaller than that: 0.5%% of the image"
    )
    parser.add_argument("--fill-holes", action="store_true", help="fill what the object encloses")
    parser.add_argument("--smooth", action="store_true", help="steady the maps of videos over their frames")
    parser.add_argument("--format", choices=("png", "jpg", "webp", "tiff"), help="of images (default png)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace files that exist (otherwise refused)")
    existing.add_argument("--skip-existing", action="store_true", help="leave files that exist, and skip their images")
    parser.add_argument(
        "--no-refine",
        action="store_true",
        help="resize maps as the authors' code does; otherwise edges follow those of images larger than the network's "
        "square",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON per image: input and output, or error"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="go on with files that are added to the folders, until Ctrl-C; outputs that exist are kept unless "
        "--overwrite is given, with which files that change are done again",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--ray",
        metavar="ADDRESS|local",
        help="predict on folders or Parquet files with a Ray cluster (or a local one), to a folder or to DIR.parquet; "
        "outputs that exist are skipped",
    )
    add_network_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from purinet_jax.prediction.backgrounds import read_background, read_share
    from purinet_jax.prediction.files import ENDINGS, STANDARD, is_video, plan, predict_files
    from purinet_jax.prediction.rendering import Style

    kind = arguments.output_kind
    ending = ENDINGS.get(arguments.format)
    style = Style(
        kind,
        arguments.threshold,
        None if arguments.background is None else read_background(arguments.background),
        not arguments.no_refine,
        ending or ".png",
        keep_largest=arguments.keep == "largest",
        min_area=read_share("min_area", arguments.min_area),
        fill_holes=arguments.fill_holes,
        matting=arguments.matting,
        smooth=arguments.smooth,
    )
    if arguments.ray is not None:
        if arguments.watch:
            raise InputError("--watch: not with --ray")
        if arguments.smooth:
            raise InputError("smooth: is for videos, which --ray does not read")
        return _run_on_ray(arguments, style)
    if arguments.quiet:
        logging.getLogger("purinet_jax").setLevel(logging.WARNING)
    if arguments.watch:
        return _watch(arguments, style, ending)
    refused: dict[str, str] = {}
    jobs = plan(
        arguments.images,
        arguments.output,
        kind=kind,
        ending=ending,
        transparent=style.transparent,
        existing="overwrite" if arguments.overwrite else "skip" if arguments.skip_existing else "refuse",
        errors=refused,
    )
    if arguments.json and jobs and jobs[0].output == STANDARD:
        raise InputError("--json: the standard output is the image's; give -o a file or folder")
    named = [*refused, *(str(job.source) for job in jobs)]
    if arguments.smooth and not arguments.skip_existing and not any(map(is_video, named)):  # skipped ones are unknown
        raise InputError("smooth: is for videos, and there is none")
    json_lines = sys.stdout if arguments.json else None
    failed = [(source, "", error) for source, error in refused.items()]
    _, errors = _report(failed, len(failed), json_lines, progress=False)
    if not jobs:
        _print_errors(errors)
        if not errors:
            print(NOTHING_TO_DO, file=sys.stderr)
        return 2 if errors else 0
    # Only now, because it imports JAX.
    from purinet_jax.devices import describe_devices
    from purinet_jax.prediction.predictor import load

    say_devices(describe_devices(arguments.require), arguments.quiet)
    predictor = load(arguments.checkpoint, arguments.size)
    progress = not arguments.quiet
    several = len(jobs) > 1
    results = predict_files(predictor, jobs, style, batch_size=arguments.batch, progress=progress and not several)
    with closing(results):
        lines = ((str(result.job.source), str(result.job.output), result.error) for result in results)
        written, more_errors = _report(lines, len(jobs), json_lines, progress and several)
    errors += more_errors
    _print_errors(errors)
    if written and str(STANDARD) not in written and not arguments.json and not arguments.quiet:
        where = f"in {arguments.output}"
        if arguments.output is None:
            where = f"next to the images, as <name>_{kind}{Path(written[0]).suffix}"
        print(written[0] if len(written) == 1 else f"{len(written):,} files {where}")
    return 2 if errors else 0


def _watch(arguments: argparse.Namespace, style: "Style", ending: str | None) -> int:
    """`run` on folders that are watched; ended by a signal."""
    from purinet_jax.prediction.files import is_file_name
    from purinet_jax.prediction.watch import watch

    for folder in arguments.images:
        if not Path(folder).is_dir():
            raise InputError(f"--watch: {folder} is not a folder")
    output = arguments.output
    if output is not None and is_file_name(output):
        raise InputError(f"--watch: {output} is not a folder")
    for folder in arguments.images if output is None else [output]:
        check_output_folder(folder)
    from purinet_jax.devices import describe_devices
    from purinet_jax.prediction.predictor import load

    say_devices(describe_devices(arguments.require), arguments.quiet)
    results = watch(
        load(arguments.checkpoint, arguments.size),
        arguments.images,
        output,
        style,
        ending=ending,
        existing="overwrite" if arguments.overwrite else "skip",
        batch_size=arguments.batch,
    )
    if not arguments.quiet:
        logger.info("watching %s (Ctrl-C ends)", ", ".join(arguments.images))
    json_lines = sys.stdout if arguments.json else None
    with closing(results):
        for result in results:
            line = (str(result.job.source), str(result.job.output), result.error)
            written, errors = _report([line], 1, json_lines, progress=False)
            _print_errors(errors)
            if written and json_lines is None and not arguments.quiet:
                print(written[0], flush=True)
    return 0


def _run_on_ray(arguments: argparse.Namespace, style: "Style") -> int:
    """`run` on a Ray cluster."""
    from purinet_jax.prediction.ray import predict_collection, ray_cluster
    from purinet_jax.prediction.ray_files import Output, find_images

    if arguments.output is None:
        raise InputError("--ray: name a folder for the outputs, or DIR.parquet, with -o")
    if arguments.overwrite:
        raise InputError("--overwrite: --ray skips outputs that exist; name another output, or remove this one")
    images = find_images(arguments.images, arguments.output)
    output = Output(arguments.output, images.names, style.ending)
    done = output.done(images.names)
    errors = [error for error in done.values() if error is not None]
    pending = [name for name in images.names if name not in done]
    json_lines = sys.stdout if arguments.json else None  # before it is redirected
    if pending:
        # Ray prints to the standard output.
        with redirect_stdout(sys.stderr), ray_cluster(arguments.ray, arguments.require) as cluster:
            say_devices(cluster, arguments.quiet)
            settings = {"checkpoint": arguments.checkpoint, "size": arguments.size, "batch_size": arguments.batch}
            results = predict_collection(images, output, pending, style=style, **settings)
            with closing(results):
                lines = ((name, output.path(name), error) for name, error in results)
                errors += _report(lines, len(pending), json_lines, not arguments.quiet)[1]
    else:
        print(NOTHING_TO_DO, file=sys.stderr)
    _print_errors(errors)
    if pending and not arguments.json and not arguments.quiet:
        print(f"{len(images.names) - len(errors):,} outputs in {arguments.output}")
    return 2 if errors else 0


def _report(
    results: Iterable[tuple[str, str, str | None]], count: int, json_lines: TextIO | None, progress: bool
) -> tuple[list[str], list[str]]:
    """Writes each result (input, output, error) as JSON if asked; returns the outputs written and the errors."""
    if progress:
        results = progress_bar(results, total=count, desc="predicting", unit="image")
    written: list[str] = []
    errors: list[str] = []
    for source, output, error in results:
        if error is None:
            written.append(output)
        else:
            errors.append(error)
        if json_lines is not None:
            outcome = {"output": output} if error is None else {"error": error}
            print(json.dumps({"input": source, **outcome}), flush=True, file=json_lines)
    return written, errors


def _print_errors(errors: Iterable[str]) -> None:
    for error in errors:  # after the progress bar, which they would break
        print(f"purinet: {error}", file=sys.stderr)
