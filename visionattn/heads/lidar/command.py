"""``visionattn infer`` for models of point clouds."""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from visionattn.cli.infer import count_of, progress_bar
from visionattn.errors import ConfigError

__all__ = ["run_points"]


def run_points(args: argparse.Namespace, config: Any, files: tuple[Path, Path], device: Any, out: Path) -> int:
    """Predict on the inputs and return the exit status: 0, or 1 if an input could not be read.

    Args:
        args: of ``visionattn infer``.
        config: of the model, loaded.
        files: config and checkpoint.
        device: where to run.
        out: folder for the results.
    """
    from visionattn.heads.lidar.predict import PointPredictor, find_clouds, predict_clouds

    given = {"--tile": args.tile, "--tta": args.tta, "--scales": args.scales != [1.0]}
    for option, value in given.items():
        if value:
            raise ConfigError(f"{option} is for pictures; this model takes point clouds")
    paths = find_clouds(args.inputs, exclude=out)
    options = dict(columns=args.columns, intensity_max=args.intensity_max, batch_size=min(args.batch_size, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor = PointPredictor(config, files[1], device, score_thr=args.score_thr, **options)
    about = {"config": str(files[0]), "checkpoint": str(files[1]), "task": predictor.task, "device": str(device)}
    start = time.perf_counter()
    with progress_bar("frames") as progress:
        task = progress.add_task("predicting", total=len(paths))
        summary = predict_clouds(
            predictor,
            paths,
            out,
            about,
            args.html,
            on_progress=lambda count: progress.advance(task, count),
            on_error=lambda line: progress.console.print(f"skipped: {line}", markup=False, soft_wrap=True),
        )
    failed = f", {count_of(len(summary.failed), 'input')} failed" if summary.failed else ""
    print(count_of(summary.frames, "frame") + failed)
    found = ", ".join(f"{name} {count}" for name, count in summary.found.most_common())
    total = sum(summary.found.values())
    print(f"detections: {total}{f' ({found})' if found else ''}, score at least {args.score_thr:g}")
    if summary.frames:
        elapsed = time.perf_counter() - start
        print(f"time: {summary.seconds / summary.frames * 1000:.0f} ms per frame in the model, {elapsed:.1f} s in all")
    else:
        print("error: not one of the inputs could be read", file=sys.stderr)
    print(f"results: {out}")
    return 1 if summary.failed else 0
