"""Serve trained models: a page for the browser, and a JSON API.

The server listens on this machine only, unless --host names another address; the environment variable VISIONATTN_TOKEN
is then required, and requests need its value. Press Ctrl-C to stop.
"""

import argparse
import os

from visionattn.errors import ConfigError, require

__all__ = ["add_arguments", "run"]

TOKEN = "VISIONATTN_TOKEN"
SHORTEST_TOKEN = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn serve``."""
    parser.add_argument(
        "--model", nargs="+", action="extend", default=[], metavar="NAME",
        help="trained models, see visionattn models (default: those of the package)",
    )  # fmt: skip
    parser.add_argument(
        "--run", dest="runs", nargs="+", action="extend", default=[], metavar="DIR", help="folders of training runs"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0 chooses a free one")
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:N (default: the first GPU if there is one, else cpu)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="files per call of a model (default: 8)")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue", type=int, default=64, metavar="N",
        help="files that are read, waiting or being predicted; further requests get status 503 (default: 64)",
    )  # fmt: skip
    limits.add_argument("--max-files", type=int, default=16, metavar="N", help="files of a request (default: 16)")
    limits.add_argument(
        "--max-bytes", type=int, default=32 << 20, metavar="N", help="bytes of a request (default: 32 MiB)"
    )
    limits.add_argument(
        "--max-pixels", type=int, default=50_000_000, metavar="N", help="pixels of an image (default: 50,000,000)"
    )
    limits.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for a request (default: 60)")


def run(args: argparse.Namespace) -> int:
    """Serve until the process is interrupted, and return 0."""
    for module in ("fastapi", "uvicorn", "python_multipart"):
        require(module, "serve")
    from visionattn.serve.guard import is_loopback
    from visionattn.serve.models import Limits, load_models

    token = os.environ.get(TOKEN, "")
    if token and len(token) < SHORTEST_TOKEN:
        raise ConfigError(f"{TOKEN} must have at least {SHORTEST_TOKEN} characters, got {len(token)}")
    if not token and not is_loopback(args.host):
        raise ConfigError(
            f"`host` {args.host} can be reached by other machines, so the environment variable {TOKEN} is required; "
            "for example: export VISIONATTN_TOKEN=$(openssl rand -hex 24)"
        )
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"`port` must be in [0, 65535], got {args.port}")
    limits = Limits(args.max_bytes, args.max_pixels, args.max_files, args.queue, args.timeout, args.batch_size)
    models = load_models(args.model, args.runs, args.device, limits)
    _serve(models, limits, args.host, args.port, token)
    return 0


def _serve(models: dict, limits, host: str, port: int, token: str) -> None:
    import logging
    import socket

    import uvicorn

    from visionattn.serve.app import create_app

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen()
    except OSError as error:
        raise ConfigError(f"`host` {host} and `port` {port} cannot be used ({error.strerror or error})") from error
    app = create_app(models, limits, host, token)
    shown = f"[{host.strip('[]')}]" if ":" in host else host
    first = next(iter(models.values())).predictor.model
    print(f"models: {', '.join(models)} ({first.device})")
    print(f"page: http://{shown}:{listening.getsockname()[1]}/", flush=True)
    print("stop: Ctrl-C" if not token else f"requests need the token in {TOKEN}; stop: Ctrl-C", flush=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it prints a line for each malformed form
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none",
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    uvicorn.Server(config).run([listening])
