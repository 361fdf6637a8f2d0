"""Draw what a config's data pipeline feeds the model: images after all their changes, with boxes, masks and maps."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument("--out", metavar="DIR", help="folder for the pictures (default: outputs/browse/<config name>)")
    parser.add_argument("--number", type=int, default=8, metavar="N", help="how many samples (default: 8)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="default: train")
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE")


def run(args: argparse.Namespace) -> int:
    """Draw; returns 0."""
    from visionattn.errors import ConfigError, require

    if args.number < 1:
        raise ConfigError(f"--number {args.number}: give 1 or more")
    require("mmengine")
    import numpy as np

    from visionattn.inference.draw import draw_prediction
    from visionattn.inference.results import InstanceMasks, Prediction
    from visionattn.inference.writing import write_png
    from visionattn.openmmlab.config import load_config
    from visionattn.openmmlab.config_checks import check_config
    from visionattn.openmmlab.progress import track
    from visionattn.openmmlab.samples import read_samples

    config = load_config(args.config, args.cfg_options)
    check_config(config, (args.split,))
    out = Path(args.out) if args.out else Path("outputs", "browse", Path(args.config).stem)
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    samples = track(read_samples(config, args.split, args.number), "drawing", args.number)
    for count, sample in enumerate(samples, 1):
        annotated = Prediction(
            sample.image.shape[:2],
            sample.classes,
            boxes=sample.boxes,
            scores=np.full(len(sample.boxes), np.nan, np.float32),
            labels=sample.labels,
            masks=None if sample.masks is None else InstanceMasks.from_dense(sample.masks),
            semantic=sample.semantic,
            colors=sample.colors,
        )
        write_png(out / f"{count - 1:03d}_{Path(sample.name).stem}.png", draw_prediction(sample.image, annotated))
    print(f"{count} pictures: {out}")
    return 0
