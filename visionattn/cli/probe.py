"""Evaluate frozen backbones on folders of classes: linear probe, nearest neighbors and efficient probing.

FOLDER has train/CLASS and val/CLASS, or only folders of classes, of which a quarter of the images is held out. The
features are computed once and kept, so that further probes take seconds.
"""

import argparse
from pathlib import Path

from visionattn.errors import ConfigError, require

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn probe``."""
    parser.add_argument("folder", metavar="FOLDER", help="images in one folder for each class")
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME", help="model names of timm, side by side")
    parser.add_argument("--weights", metavar="FILE", help="weights of the model (default: its pretrained weights)")
    parser.add_argument("--random", action="store_true", help="use random weights")
    parser.add_argument(
        "--methods", nargs="+", default=["knn", "linear", "efficient"], metavar="M",
        help="knn, linear and efficient (default: all three)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=int, default=90, metavar="N",
        help="epochs of the trained probes, raised to at least 1000 steps (default: 90)",
    )  # fmt: skip
    parser.add_argument(
        "--lr", type=float, metavar="X",
        help="their learning rate for a batch size of 256 (default: the best of 0.1, the published one, 1 and 10 on "
        "held-out training images)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1024, metavar="N", help="their batch size (default: 1024)")
    parser.add_argument(
        "--views", type=int, default=1, metavar="N",
        help="views of each training image: the whole image and N - 1 random crops (default: 1)",
    )  # fmt: skip
    parser.add_argument("--queries", type=int, default=32, metavar="N", help="of efficient probing (default: 32)")
    parser.add_argument("--neighbors", type=int, default=20, metavar="K", help="of knn (default: 20)")
    parser.add_argument("--size", type=int, metavar="N", help="side of the input (default: that of the model)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the probes (default: 0)")
    parser.add_argument("--device", default="cpu", metavar="D", help="device of the backbone (default: cpu)")
    parser.add_argument("--out", default="outputs/probe", metavar="DIR", help="output folder (default: outputs/probe)")


def run(args: argparse.Namespace) -> int:
    """Probe the models and return 0."""
    require("matplotlib", "timm")
    for name in ("epochs", "batch", "views", "queries", "neighbors"):
        if getattr(args, name) < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {getattr(args, name)}")
    if args.size is not None and args.size < 1:
        raise ConfigError(f"`size` must be at least 1, got {args.size}")
    if args.lr is not None and args.lr <= 0:
        raise ConfigError(f"`lr` must be positive, got {args.lr}")
    if args.weights and (args.random or len(args.model) > 1):
        raise ConfigError("`weights` applies to one `model` without `random`")
    from rich.console import Console
    from rich.table import Table

    from visionattn.inference.explain.loading import load_backbone
    from visionattn.inference.probing.images import read_splits
    from visionattn.inference.probing.probes import Protocol
    from visionattn.inference.probing.report import probe_models
    from visionattn.io.console import progress_bar

    train, test = read_splits(Path(args.folder), args.seed)
    console = Console(highlight=False)
    console.print(f"{len(train.classes)} classes, {len(train.files)} training and {len(test.files)} test images")
    pretrained = not args.random and args.weights is None
    models = {name: lambda name=name: load_backbone(name, args.weights, pretrained, args.device) for name in args.model}
    protocol = Protocol(epochs=args.epochs, base_lr=args.lr, batch_size=args.batch, seed=args.seed)
    with progress_bar("%", transient=True) as bar:
        tasks: dict[str, int] = {}

        def report(text: str, fraction: float) -> None:
            if text not in tasks:
                tasks[text] = bar.add_task(text, total=100)
            bar.update(tasks[text], completed=round(100 * fraction))

        results = probe_models(
            models, train, test, Path(args.out), args.methods, protocol, args.views, args.size, args.queries,
            args.neighbors, report,
        )  # fmt: skip
    table = Table("model", "probe", "top-1", "top-5", "parameters", "seconds")
    for row in results:
        table.add_row(row.model, row.method, f"{row.top1:.1f}", f"{row.top5:.1f}", f"{row.parameters:,}",
                      f"{row.seconds:.1f}")  # fmt: skip
    console.print(table)
    console.print(f"results: {args.out}/results.csv, pictures: {args.out}/accuracy.png", soft_wrap=True)
    return 0
