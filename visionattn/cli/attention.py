"""Draw attention, class activation and relevance maps of an image, or measure the heads over a folder of images."""

import argparse
from pathlib import Path
from typing import Any

from visionattn.cli.source import find_trained, is_trained
from visionattn.errors import ConfigError, require

__all__ = ["add_arguments", "run"]

RULES = ("z", "z+", "epsilon", "alpha-beta")
"""The rules of `visionattn.inference.explain.relevance`, which is not imported for ``--help``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn attention``."""
    parser.add_argument("image", metavar="IMAGE", help="image file, or with --heads a folder of images")
    parser.add_argument(
        "--model", metavar="NAME", help="timm model name, such as dinat_mini, or a model of visionattn models"
    )
    parser.add_argument("--run", metavar="WORK_DIR", help="folder of a training run; draws its backbone")
    parser.add_argument("--config", metavar="FILE", help="config file, with --checkpoint; draws its backbone")
    parser.add_argument(
        "--weights", "--checkpoint", dest="checkpoint", metavar="FILE",
        help="weights of --model (default: its pretrained or published weights) or of --config",
    )  # fmt: skip
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
        "--relevance", nargs="?", const="epsilon", choices=(*RULES, "published"), metavar="RULE",
        help="draw relevance maps of a classifier (layer-wise relevance propagation) beside LayerCAM; rules: "
        f"{', '.join(RULES)}, or published (z for convolutions, z+ for linear layers); default: epsilon",
    )  # fmt: skip
    parser.add_argument("--label", type=int, metavar="N", help="class index for --relevance (default: top class)")
    parser.add_argument(
        "--heads", action="store_true",
        help="measure all heads of --model over a folder of images: importance, attention over distance, patterns",
    )  # fmt: skip
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME",
        help="class names of --model in order; with --heads, subfolders with these names label the images",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="most images of --heads (default: 50)")
    parser.add_argument("--patterns", type=int, default=6, metavar="N", help="patterns of --heads (default: 6)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the patterns (default: 0)")
    parser.add_argument(
        "--out", default="outputs/attention", metavar="DIR", help="output folder (default: outputs/attention)"
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu (default), cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Write the page and return 0."""
    require("cv2")
    require("matplotlib")
    given = [name for name in ("model", "run", "config") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ConfigError("exactly one of `model`, `run` and `config` is required")
    if args.size is not None and args.size < 32:
        raise ConfigError(f"`size` must be at least 32, got {args.size}")
    if args.heads:
        for name in ("query", "layers", "prune", "relevance", "label"):
            if getattr(args, name) not in (None, False):
                raise ConfigError(f"`{name}` has no effect with `heads`; remove one of them")
        return _run_folder(args)
    if args.label is not None and args.relevance is None:
        raise ConfigError("`label` requires `relevance`")
    return _run_image(args)


def _run_image(args: argparse.Namespace) -> int:
    from visionattn.inference.explain.page import write_image_page
    from visionattn.inference.explain.relevance import PUBLISHED
    from visionattn.io.images import read_image

    if Path(args.image).is_dir():
        raise ConfigError(f"{args.image} is a folder, which requires `heads`")
    image = read_image(Path(args.image))
    out = Path(args.out)
    height, width = image.shape[:2]
    queries = args.query or [(width / 2, height / 2)]
    for x, y in queries:
        if not (0 <= x < width and 0 <= y < height):
            raise ConfigError(f"`query` must be inside the image of {width}x{height} pixels, got {x:g} {y:g}")
    name, model, tensor = _model(args, image)
    classifier = args.model is not None and not is_trained(args.model) and not args.random
    rule = PUBLISHED if args.relevance == "published" else args.relevance
    count = write_image_page(
        out, name, model, image, tensor.to(args.device), queries, args.layers, args.prune, classifier, rule, args.label
    )
    print(f"{count} attention layers, results: {out / 'index.html'}")
    return 0


def _run_folder(args: argparse.Namespace) -> int:
    import cv2

    from visionattn.inference.explain.loading import load_backbone, prepare
    from visionattn.inference.explain.overview import write_overview
    from visionattn.inference.explain.survey import class_names, folder_labels, survey_heads
    from visionattn.io.console import count_of, track
    from visionattn.io.images import read_image
    from visionattn.io.inputs import IMAGE_SUFFIXES, find_files

    if args.model is None or is_trained(args.model):
        raise ConfigError("`heads` applies to timm models only")
    for option in ("limit", "patterns"):
        if getattr(args, option) < 1:
            raise ConfigError(f"`{option}` must be at least 1, got {getattr(args, option)}")
    folder, out = Path(args.image), Path(args.out)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder, which `heads` requires")
    model = load_backbone(args.model, args.checkpoint, not args.random and args.checkpoint is None, args.device)
    files = find_files([folder], IMAGE_SUFFIXES, exclude=out)
    files = (
        [files[index * len(files) // args.limit] for index in range(args.limit)] if len(files) > args.limit else files
    )
    names = class_names(model, args.classes)
    labels = folder_labels(files, folder, names, args.classes is not None)
    side = args.size or (model.pretrained_cfg or {}).get("input_size", (3, 224, 224))[1]

    def inputs():
        for file, label in zip(track(files, "measuring", len(files)), labels, strict=True):
            square = cv2.resize(read_image(file), (side, side), interpolation=cv2.INTER_AREA)
            yield prepare(square, model, side).to(args.device), label

    survey = survey_heads(model, inputs())
    facts = {
        "model": args.model,
        "weights": args.checkpoint or ("random" if args.random else "pretrained"),
        "images": f"{len(files)} of {folder}",
        "classes of the images": "names of the subfolders" if labels[0] is not None else "predicted by the model",
    }
    write_overview(out, f"Heads of {args.model}", facts, survey, names, args.patterns, args.seed)
    heads = sum(layer.heads for layer in survey.layers)
    print(f"{count_of(heads, 'head')} in {count_of(len(survey.layers), 'attention layer')}, "
          f"{count_of(len(files), 'image')}, results: {out / 'index.html'}")  # fmt: skip
    return 0


def _model(args: argparse.Namespace, image: Any) -> tuple[str, Any, Any]:
    """Return the name of the model, the backbone, and the image as its input."""
    from visionattn.inference.explain.loading import load_backbone, load_run, prepare

    if args.model is not None and not is_trained(args.model):
        model = load_backbone(args.model, args.checkpoint, not args.random and args.checkpoint is None, args.device)
        return args.model, model, prepare(image, model, args.size)
    if args.random:
        raise ConfigError("`random` applies to timm models only")
    config, checkpoint = find_trained(args.model or args.run or args.config, args.checkpoint)
    return Path(config).stem, *load_run(config, checkpoint, image, args.size, args.device)
