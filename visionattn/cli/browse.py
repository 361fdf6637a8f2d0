"""Draw what a config's data pipeline feeds the model: images or point clouds after all changes, with annotations."""

import argparse
from pathlib import Path
from typing import Any


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

    from visionattn.engine.config.checks import check_config
    from visionattn.engine.config.load import load_config
    from visionattn.engine.samples import read_samples
    from visionattn.engine.train.progress import track
    from visionattn.heads.lidar.mmlab.predict import is_point_config
    from visionattn.inference.draw import draw_prediction
    from visionattn.inference.results import InstanceMasks, Prediction
    from visionattn.inference.writing import write_png

    config = load_config(args.config, args.cfg_options)
    check_config(config, (args.split,))
    out = Path(args.out) if args.out else Path("outputs", "browse", Path(args.config).stem)
    out.mkdir(parents=True, exist_ok=True)
    if is_point_config(config):
        return _draw_clouds(config, args.split, args.number, out)
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


def _draw_clouds(config: Any, split: str, number: int, out: Path) -> int:
    import numpy as np

    from visionattn.heads.lidar.draw import draw_bev
    from visionattn.heads.lidar.mmlab.predict import model_range, read_point_samples
    from visionattn.heads.lidar.results import PointPrediction
    from visionattn.inference.writing import write_png

    x0, y0, _, x1, y1, _ = model_range(config)
    count = 0
    for count, sample in enumerate(read_point_samples(config, split, number), 1):
        scores = np.full(len(sample["boxes"]), np.nan, np.float32)
        shown = PointPrediction(sample["points"], sample["classes"], sample["boxes"], scores, sample["labels"])
        write_png(out / f"{count - 1:03d}_{Path(sample['name']).stem}.png", draw_bev(shown, (x0, y0, x1, y1)))
    print(f"{count} pictures: {out}")
    return 0
