"""Draw what a backbone's attention looks at in a picture: a query's weights, how far heads look, which heads matter."""

import argparse
from pathlib import Path

from visionattn.errors import ConfigError, require

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("image", metavar="IMAGE", help="a picture")
    parser.add_argument("--model", required=True, metavar="NAME", help="of timm's registry, such as dinat_mini")
    parser.add_argument("--checkpoint", metavar="FILE", help="its weights, ours or as published (default: pretrained)")
    parser.add_argument("--random", action="store_true", help="random weights, to try the command")
    parser.add_argument(
        "--query", nargs=2, type=float, metavar=("X", "Y"), action="append",
        help="a place in pixels of the picture, as often as you like (default: its middle)",
    )  # fmt: skip
    parser.add_argument("--layers", nargs="+", type=int, metavar="N", help="attentions to draw, from 0 (default: all)")
    parser.add_argument("--size", type=int, metavar="N", help="shorter side that the model sees (default: the model's)")
    parser.add_argument("--prune", action="store_true", help="also find out what each head is worth; takes a while")
    parser.add_argument("--out", default="outputs/attention", metavar="DIR", help="default: outputs/attention")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu (default), cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Draw; returns 0."""
    require("cv2")
    require("matplotlib")
    from visionattn.inference.attention_page import load_backbone, read_input, write_page

    if args.size is not None and args.size < 32:
        raise ConfigError(f"--size {args.size}: must be at least 32")
    model = load_backbone(args.model, args.checkpoint, not args.random and args.checkpoint is None, args.device)
    picture, tensor = read_input(Path(args.image), model, args.size)
    out = Path(args.out)
    queries = args.query or [(picture.shape[1] / 2, picture.shape[0] / 2)]
    for x, y in queries:
        if not (0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]):
            raise ConfigError(f"--query {x:g} {y:g}: is outside of the picture, {picture.shape[1]}x{picture.shape[0]}")
    count = write_page(out, args.model, model, picture, tensor.to(args.device), queries, args.layers, args.prune)
    print(f"{count} attentions; pictures and the page: {out / 'index.html'}")
    return 0
