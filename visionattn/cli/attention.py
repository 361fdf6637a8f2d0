"""Draw the attention maps of a backbone for an image, the mean attention distance and the importance of heads."""

import argparse
from pathlib import Path

from visionattn.errors import ConfigError, require

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn attention``."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--model", required=True, metavar="NAME", help="timm model name, such as dinat_mini")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights file (default: pretrained weights of timm)")
    parser.add_argument("--random", action="store_true", help="use random weights")
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
    from visionattn.inference.attention_page import load_backbone, read_input, write_page

    if args.size is not None and args.size < 32:
        raise ConfigError(f"`size` must be at least 32, got {args.size}")
    model = load_backbone(args.model, args.checkpoint, not args.random and args.checkpoint is None, args.device)
    image, tensor = read_input(Path(args.image), model, args.size)
    out = Path(args.out)
    height, width = image.shape[:2]
    queries = args.query or [(width / 2, height / 2)]
    for x, y in queries:
        if not (0 <= x < width and 0 <= y < height):
            raise ConfigError(f"`query` must be inside the image of {width}x{height} pixels, got {x:g} {y:g}")
    count = write_page(out, args.model, model, image, tensor.to(args.device), queries, args.layers, args.prune)
    print(f"{count} attention layers, results: {out / 'index.html'}")
    return 0
