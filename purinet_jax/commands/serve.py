"""`purinet serve`: a web page for photos and an HTTP interface for programs."""

import argparse
import logging
from pathlib import Path

from purinet_jax.commands.arguments import add_checkpoint, add_require, not_negative, positive, say_devices
from purinet_jax.errors import InputError

SUMMARY = "Serve a web page for photos and an HTTP interface."
EXAMPLES = """examples:
  purinet serve                                      # then open http://127.0.0.1:8000
  curl -s --data-binary @photo.jpg http://127.0.0.1:8000/v1/cutout > cutout.png
  curl -s -F image=@photo.jpg 'http://127.0.0.1:8000/v1/mask?threshold=0.3&format=webp' > mask.webp
  curl -s -F file=@photo.jpg http://127.0.0.1:8000/api/remove > cutout.png     # as rembg's server
  purinet serve --checkpoint runs/mine --port 8080
  purinet serve --host 0.0.0.0 --token-file token    # for other machines: Authorization: Bearer …

Needs the extra: pip install 'purinet_jax[serve]'. Only this machine reaches the server unless --host is given. Uploads
are never written to disk, and nothing is fetched from the network. Programs made for rembg's server or for remove.bg
work with this server's address. /openapi.json describes the interface, /health says whether the server works, /metrics
is for Prometheus. After SIGTERM or Ctrl-C, requests in progress are finished."""

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, the loopback)")
    add("--port", type=_port, default=8000, help="port to listen on (default 8000; 0: any free one)")
    hosts_help = "names, besides localhost, of the sites by which a reverse proxy makes the server reachable"
    add("--allowed-hosts", nargs="+", default=[], metavar="NAME", help=hosts_help)
    add("--token-file", type=Path, metavar="FILE", help="token that requests need (default: PURINET_TOKEN, or none)")
    add_checkpoint(parser)
    add("--batch", type=positive, help="most images in a batch (default 8; on a CPU 1, where batches are not faster)")
    add("--size", type=positive, help="side that images are resized to (default: that of training, or 320)")
    add("--max-megabytes", type=positive, default=32, metavar="N", help="limit of an upload, 2^20 bytes (default 32)")
    pixels_help = "limit of an image and of all in progress together (default 64; one takes about 20 MB)"
    add("--max-megapixels", type=positive, default=64, metavar="N", help=pixels_help)
    add("--queue", type=positive, default=64, metavar="N", help="limit of images in progress (default 64)")
    add("--timeout", type=positive, default=60, metavar="SECONDS", help="limit for an image (default 60)")
    add_require(parser)
    add("--quiet", action="store_true", help="print nothing but warnings")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    try:
        from purinet_jax.serve import Limits, Worker, listen, make_server, serve
        from purinet_jax.serve.server import LOOPBACK_HOSTS, in_url, read_token
    except ImportError as error:
        raise InputError(f"serve: needs {error.name}: pip install 'purinet_jax[serve]'") from error

    token = read_token(arguments.token_file)
    with listen(arguments.host, arguments.port) as listening:
        # These import JAX, which takes seconds; errors above are reported before.
        from purinet_jax.devices import describe_devices
        from purinet_jax.prediction.predictor import load

        device = describe_devices(arguments.require)
        say_devices(device, arguments.quiet)
        predictor = load(arguments.checkpoint, arguments.size)
        batch_size = arguments.batch or (1 if device.startswith("CPU") else 8)
        worker = Worker(predictor, batch_size=batch_size, pixels=arguments.max_megapixels * 1_000_000)
        limits = Limits(arguments.max_megabytes << 20, arguments.queue, arguments.timeout)
        server = make_server(worker, arguments.host, limits, token, arguments.allowed_hosts)
        host = in_url(arguments.host)
        if not arguments.quiet:
            logger.info("serving on http://%s:%d (Ctrl-C ends)", host, listening.getsockname()[1])
        if token is None and host not in LOOPBACK_HOSTS:
            logger.warning("anyone who reaches %s may use it: --token-file asks for a token", arguments.host)
        serve(server, listening)
    return 0


def _port(text: str) -> int:
    value = not_negative(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 65535")
    return value
