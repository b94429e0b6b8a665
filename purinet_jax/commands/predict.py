"""`purinet predict`: pictures and videos in, what is found in them out."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from purinet_jax.commands.arguments import add_checkpoint, add_network_arguments, say_devices, share
from purinet_jax.errors import InputError

if TYPE_CHECKING:
    from purinet_jax.prediction.rendering import Style

SUMMARY = "Find the salient objects in images and videos."
EXAMPLES = """examples:
  purinet predict photo.jpg                                       # photo_map.png
  purinet predict photo.jpg --output-kind cutout                  # photo_cutout.png, transparent around the object
  purinet predict photo.jpg --output-kind cutout --background white -o product.jpg
  purinet predict photos/ 'more/**/*.jpg' -o maps                 # maps/<path below photos or more>/<stem>.png
  purinet predict clip.mp4 --output-kind overlay                  # clip_overlay.mp4
  curl -s https://example.org/photo.jpg | purinet predict - --output-kind mask > mask.png
  purinet predict s3://bucket/photos --ray 10.0.0.1:6379 -o s3://bucket/maps.parquet   # on a Ray cluster; docs/ray.md
  purinet predict DUTS-TE-Image/ --checkpoint stage3.pth --no-refine -o maps --batch 8   # the authors' very maps

Folders are searched for images (bmp, jpg, png, ppm, tiff, webp), those within too; hidden files and what an earlier run
wrote are left out. Videos (mp4, webm, gif) must be named or matched, and need the extra: pip install
'purinet_jax[video]'; frames, times and sound stay, but a cut-out without background is a WebM with alpha, which MP4's
sound does not fit in. Two images of one stem (a.jpg, a.png) keep their endings: a.jpg.png, a.png.png. Images are turned
upright and converted to sRGB; pictures have the image's size, panels at most that of the network's square. Nothing is
fetched from the network."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR|PATTERN|-", help="files, folders, patterns, or stdin")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR|FILE|-",
        help="a folder, a file for one image, or stdout (default: <stem>_<kind>.png beside each image)",
    )
    parser.add_argument(
        "--output-kind",
        choices=("map", "mask", "cutout", "overlay", "attention"),
        default="map",
        help="grey map (the default), black-and-white mask, the object cut out, the image with the object tinted, or "
        "panels of image, map, promotion, rectification and error that show why",
    )
    parser.add_argument(
        "--threshold", type=share, default=0.5, help="of masks, and of cut-outs' edges, between 0 and 1 (default 0.5)"
    )
    parser.add_argument(
        "--background",
        metavar="COLOR|IMAGE",
        help="put cut-outs on a colour (white, '#80ff00') or on an image, which is scaled to cover",
    )
    parser.add_argument("--format", choices=("png", "jpg", "webp", "tiff"), help="of images (default png)")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace files that exist (they are refused otherwise)")
    there.add_argument("--skip-existing", action="store_true", help="leave files that exist, and skip their images")
    parser.add_argument(
        "--no-refine",
        action="store_true",
        help="resize maps as the authors' code does; otherwise edges follow those of images larger than the network's "
        "square",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON per image: input and output, or error"
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--ray",
        metavar="ADDRESS|local",
        help="folders or Parquet files by a Ray cluster (or one of this machine alone) to a folder of pictures, or to "
        "DIR.parquet; what is there already is skipped",
    )
    add_network_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from contextlib import closing

    from purinet_jax.prediction.files import ENDINGS, STANDARD, plan, predict_files
    from purinet_jax.prediction.rendering import Style, read_background
    from purinet_jax.prediction.stream import show_progress

    kind = arguments.output_kind
    if arguments.background is not None and kind != "cutout":
        raise InputError(f"--background: is for --output-kind cutout, not {kind}")
    background = None if arguments.background is None else read_background(arguments.background)
    ending = ENDINGS.get(arguments.format)
    style = Style(kind, arguments.threshold, background, not arguments.no_refine, ending or ".png")
    if arguments.ray is not None:
        return _run_on_ray(arguments, style)
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
    from purinet_jax.devices import describe_devices
    from purinet_jax.prediction.predictor import load

    say_devices(describe_devices(arguments.require), arguments.quiet)
    predictor = load(arguments.checkpoint, arguments.size)
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
                _print_json(str(result.job.source), str(result.job.output), result.error)
    _print_errors(errors)
    if done and STANDARD not in done and not arguments.json and not arguments.quiet:
        print(_whereabouts(done, kind, arguments.output))
    return 2 if errors else 0


def _run_on_ray(arguments: argparse.Namespace, style: "Style") -> int:
    """The same on a Ray cluster."""
    from contextlib import closing, redirect_stdout

    from purinet_jax.prediction.ray import predict_archive, ray_cluster
    from purinet_jax.prediction.ray_files import Output, find_archive
    from purinet_jax.prediction.stream import show_progress

    if arguments.output is None:
        raise InputError("--ray: name a folder for the pictures, or DIR.parquet, with -o")
    if arguments.overwrite:
        raise InputError("--overwrite: --ray leaves what is done; name another output, or remove this one")
    archive = find_archive(arguments.images, arguments.output)
    output = Output(arguments.output, archive.names, style.ending)
    done = output.done(archive.names)
    errors = [error for error in done.values() if error is not None]
    pending = [name for name in archive.names if name not in done]
    # Ray prints to the standard output, which is ours.
    ours = sys.stdout
    if pending:
        with redirect_stdout(sys.stderr), ray_cluster(arguments.ray, arguments.require) as cluster:
            say_devices(cluster, arguments.quiet)
            results = predict_archive(
                archive,
                output,
                pending,
                checkpoint=arguments.checkpoint,
                size=arguments.size,
                style=style,
                batch_size=arguments.batch,
            )
            with closing(results):
                for name, error in show_progress(results, len(pending), not arguments.quiet):
                    errors += [] if error is None else [error]
                    if arguments.json:
                        _print_json(name, output.place(name), error, ours)
    else:
        print("all there already, nothing to do", file=sys.stderr)
    _print_errors(errors)
    if pending and not arguments.json and not arguments.quiet:
        print(f"{len(archive.names) - len(errors):,} pictures in {arguments.output}")
    return 2 if errors else 0


def _print_json(source: str, output: str, error: str | None, file: TextIO | None = None) -> None:
    place = {"output": output} if error is None else {"error": error}
    print(json.dumps({"input": source, **place}), flush=True, file=file)


def _print_errors(errors: Sequence[str]) -> None:
    for error in errors:  # behind the bar, which they would tear apart
        print(f"purinet: {error}", file=sys.stderr)


def _whereabouts(files: Sequence[Path], kind: str, output: str | None) -> str:
    """One line that says where pictures are."""
    if len(files) == 1:
        return str(files[0])
    named = f"{len(files):,} files"
    return f"{named} in {output}" if output else f"{named} beside the images, as <name>_{kind}{files[0].suffix}"
