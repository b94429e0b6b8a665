"""`purinet serve`: a page to drop pictures on, and the same for programs, over HTTP."""

import argparse
import logging
from pathlib import Path

from purinet_jax.commands.arguments import add_checkpoint, add_require, positive, say_devices
from purinet_jax.errors import InputError

SUMMARY = "Serve a page to drop pictures on, and an HTTP interface."
EXAMPLES = """examples:
  purinet serve                                      # then open http://127.0.0.1:8000
  curl -s --data-binary @photo.jpg http://127.0.0.1:8000/v1/cutout > cutout.png
  curl -s -F image=@photo.jpg 'http://127.0.0.1:8000/v1/mask?threshold=0.3&format=webp' > mask.webp
  purinet serve --checkpoint runs/mine --port 8080
  purinet serve --host 0.0.0.0 --token-file token    # for other machines: Authorization: Bearer …

Needs the extra: pip install 'purinet_jax[serve]'. Only this machine reaches the server unless --host is given. Uploads
are never written, and nothing is fetched from the network. /openapi.json describes the interface, /health says whether
the server works, /metrics is for Prometheus. SIGTERM and Ctrl-C let it answer those who wait first."""

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, the loopback)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on (default 8000; 0: any free one)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="a file with the token that requests must bear (default: that in PURINET_TOKEN, or none)",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--batch",
        type=positive,
        help="pictures that the network takes at once, of those that wait (default 8; on a CPU 1, since there a batch "
        "takes as long as its pictures one by one)",
    )
    parser.add_argument(
        "--size", type=positive, help="side that images are squashed to (default: that of training, or 320)"
    )
    parser.add_argument(
        "--max-megabytes", type=positive, default=32, metavar="N", help="of an upload (default 32, of 2^20 bytes)"
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive,
        default=64,
        metavar="N",
        help="of a picture, and of all that are being made together (default 64; a megapixel takes about 20 MB)",
    )
    parser.add_argument("--queue", type=positive, default=64, metavar="N", help="pictures waited for (default 64)")
    parser.add_argument("--timeout", type=positive, default=60, metavar="SECONDS", help="for a picture (default 60)")
    add_require(parser)
    parser.add_argument("--quiet", action="store_true", help="say nothing")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    try:
        from purinet_jax.serve.app import Limits, Measures
        from purinet_jax.serve.server import address, is_loopback, listen, read_token, serve
    except ImportError as error:
        raise InputError(f"serve: needs {error.name}: pip install 'purinet_jax[serve]'") from error

    token = read_token(arguments.token_file)
    listening = listen(arguments.host, arguments.port)
    with listening:
        # Only now, because it imports JAX.
        from purinet_jax.devices import describe_devices
        from purinet_jax.prediction.predictor import load
        from purinet_jax.serve.worker import Worker

        device = describe_devices(arguments.require)
        say_devices(device, arguments.quiet)
        predictor = load(arguments.checkpoint, arguments.size)
        batch = arguments.batch or (1 if device.startswith("CPU") else 8)

        def make_worker(measures: Measures) -> Worker:
            pixels = arguments.max_megapixels * 1_000_000
            return Worker(predictor, batch_size=batch, pixels=pixels, asked=measures.batch.observe)

        def ready() -> None:
            if not arguments.quiet:
                logger.info("serving on %s (Ctrl-C ends)", address(listening, arguments.host))
            if token is None and not is_loopback(arguments.host):
                logger.warning("anyone who reaches %s may use it: --token-file asks for a token", arguments.host)

        limits = Limits(arguments.max_megabytes << 20, arguments.queue, arguments.timeout)
        serve(make_worker, listening, arguments.host, limits, token=token, ready=ready)
    return 0


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 65535")
    return value
