"""Draw the attention maps of a backbone for an image, the mean attention distance and the importance of heads."""

import argparse
from pathlib import Path
from typing import Any

from visionattn.cli.source import find_trained, is_trained
from visionattn.errors import ConfigError, require

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn attention``."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--model", metavar="NAME", help="timm model name, such as dinat_mini")
    parser.add_argument("--run", metavar="WORK_DIR", help="folder of a training run; draws its backbone")
    parser.add_argument("--config", metavar="FILE", help="config file, with --checkpoint; draws its backbone")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="weights of --model (default: pretrained weights of timm) or --config"
    )
    parser.add_argument("--random", action="store_true", help="use random weights of --model")
    parser.add_argument(
        "--query", nargs=2, type=float, metavar=("X", "Y"), action="append",
        help="query position in pixels of the image; can be repeated (default: center)",
    )  # fmt: skip
    parser.add_argument(
        "--layers", nargs="+", type=int, metavar="N", help="indices of the attention layers to draw (default: all)"
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="shorter side of the model input (default: that of the model)"
    )
    parser.add_argument("--prune", action="store_true", help="also measure the importance of each head (slow)")
    parser.add_argument(
        "--out", default="outputs/attention", metavar="DIR", help="output folder (default: outputs/attention)"
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu (default), cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Draw the attention maps and return 0."""
    require("cv2")
    require("matplotlib")
    from visionattn.inference.attention_page import write_page
    from visionattn.io.images import read_image

    given = [name for name in ("model", "run", "config") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ConfigError("exactly one of `model`, `run` and `config` is required")
    if args.size is not None and args.size < 32:
        raise ConfigError(f"`size` must be at least 32, got {args.size}")
    image = read_image(Path(args.image))
    out = Path(args.out)
    height, width = image.shape[:2]
    queries = args.query or [(width / 2, height / 2)]
    for x, y in queries:
        if not (0 <= x < width and 0 <= y < height):
            raise ConfigError(f"`query` must be inside the image of {width}x{height} pixels, got {x:g} {y:g}")
    name, model, tensor = _model(args, image)
    classifier = args.model is not None and not is_trained(args.model) and not args.random
    count = write_page(out, name, model, image, tensor.to(args.device), queries, args.layers, args.prune, classifier)
    print(f"{count} attention layers, results: {out / 'index.html'}")
    return 0


def _model(args: argparse.Namespace, image: Any) -> tuple[str, Any, Any]:
    """Return the name of the model, the backbone, and the image as its input."""
    from visionattn.inference.attention_page import load_backbone, load_run, prepare

    if args.model is not None and not is_trained(args.model):
        model = load_backbone(args.model, args.checkpoint, not args.random and args.checkpoint is None, args.device)
        return args.model, model, prepare(image, model, args.size)
    if args.random:
        raise ConfigError("`random` applies to timm models only")
    config, checkpoint = find_trained(args.model or args.run or args.config, args.checkpoint)
    return Path(config).stem, *load_run(config, checkpoint, image, args.size, args.device)
