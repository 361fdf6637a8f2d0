"""Run a trained model on images, folders, globs, videos or point clouds, and write overlays and predictions.json.

An input that cannot be read is reported and passed over, and the exit status is then 1.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

from visionattn.errors import ConfigError, DataError, require
from visionattn.io.images import MAX_PIXELS
from visionattn.io.inputs import Source, find_inputs

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn infer``."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="an image, a folder (searched to any depth), a glob in quotes, a video, or a point cloud "
        "(.bin .pcd .npy .npz) for models of those",
    )
    model = parser.add_argument_group("the model: a run's folder, or a config and a checkpoint")
    model.add_argument("--run", metavar="WORK_DIR", help="the folder that training wrote; its best checkpoint")
    model.add_argument("--config", metavar="FILE", help="config file, with --checkpoint")
    model.add_argument("--checkpoint", metavar="FILE", help="weights, with --config")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the results (default: outputs/infer/<model>-<date>-<time>)"
    )
    parser.add_argument(
        "--score-thr", type=float, default=0.3, metavar="S", help="leave out boxes below it (default: 0.3)"
    )
    parser.add_argument("--tile", type=int, metavar="N", help="cut images larger than N pixels into tiles of that side")
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="N",
        help="pixels that tiles share; objects larger than that are put together from pieces (default: a quarter tile)",
    )
    parser.add_argument("--tta", action="store_true", help="look at mirrored images too, and merge")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="look at images at these multiples of the usual size, and merge, such as 0.75 1 1.25 (default: 1)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="images at a time, if of one size (default: 8)"
    )
    parser.add_argument(
        "--points",
        metavar="PATH",
        help="key points of videos, for models of actions: a file, or a folder with files named as the videos",
    )
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:N (default: the first GPU if there is one, else cpu)"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse images with more pixels, before decoding them (default: {MAX_PIXELS:,})",
    )
    clouds = parser.add_argument_group("point clouds")
    clouds.add_argument("--html", action="store_true", help="also write a page for each, to look at it from all sides")
    clouds.add_argument("--columns", type=int, metavar="N", help="of .bin files, where neither size nor JSON tells")
    clouds.add_argument(
        "--intensity-max",
        type=float,
        default=1.0,
        metavar="I",
        help="intensity that becomes 1, of files without a JSON file beside them (default: 1; nuScenes: 255)",
    )


def run(args: argparse.Namespace) -> int:
    """Predict on the inputs and return the exit status: 0, or 1 if an input could not be read."""
    _check_model_arguments(args)
    require("mmengine")  # before anything takes time
    from visionattn.engine.config.checks import check_config
    from visionattn.engine.model import config_for
    from visionattn.heads.lidar.mmlab.predict import is_point_config
    from visionattn.inference.files import plan_files, predict_files
    from visionattn.inference.predictor import Options, Predictor, pick_device

    options = Options(
        score_thr=args.score_thr,
        batch_size=args.batch_size,
        tile=args.tile,
        overlap=args.overlap,
        tta=args.tta,
        scales=tuple(args.scales),
        max_pixels=args.max_pixels,
        points=args.points,
    )
    device = pick_device(args.device)
    out = _out_folder(args)
    config, checkpoint = _model_files(args)
    loaded_config = config_for(config, checkpoint)
    check_config(loaded_config, ())
    if is_point_config(loaded_config):
        from visionattn.heads.lidar.command import run_points

        return run_points(args, loaded_config, (config, checkpoint), device, out)
    sources = find_inputs(args.inputs, exclude=out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenMMLab's, of its own deprecated names
        predictor = Predictor(loaded_config, checkpoint, device, **vars(options))
    plan = plan_files(sources, out)
    about = {
        "config": str(config),
        "checkpoint": str(checkpoint),
        "task": predictor.task,
        "device": str(device),
    }
    start = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task("predicting", total=_count_work(sources))
        summary = predict_files(
            predictor,
            plan,
            about,
            on_progress=lambda count: progress.advance(task, count),
            on_error=lambda line: progress.console.print(f"skipped: {line}", markup=False, soft_wrap=True),
        )
        progress.update(task, total=progress.tasks[0].completed)  # a video's number of frames is an estimate
    _print_summary(summary, predictor, out, time.perf_counter() - start)
    return 1 if summary.failed else 0


def _check_model_arguments(args: argparse.Namespace) -> None:
    given = [name for name in ("config", "checkpoint") if getattr(args, name) is not None]
    if args.run is not None and given:
        raise ConfigError(f"--run names a config and a checkpoint itself; leave out --{given[0]}, or --run")
    if args.run is None and not given:
        raise ConfigError("no model was named; give --run WORK_DIR, or --config FILE and --checkpoint FILE")
    if len(given) == 1:
        other = "checkpoint" if given[0] == "config" else "config"
        raise ConfigError(f"--{given[0]} needs --{other} beside it")


def _model_files(args: argparse.Namespace) -> tuple[Path, Path]:
    if args.run is None:
        return Path(args.config), Path(args.checkpoint)
    from visionattn.engine.model import find_run

    return find_run(args.run)


def _out_folder(args: argparse.Namespace) -> Path:
    if args.out is None:
        name = Path(args.run).resolve().name if args.run else Path(args.config).stem
        return Path("outputs", "infer", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out}: is a file; name a folder")
    return out


def _count_work(sources: list[Source]) -> int:
    """Images, and frames as far as videos tell their number."""
    total = sum(not source.is_video for source in sources)
    for source in sources:
        if source.is_video:
            from visionattn.inference.video import VideoReader

            try:
                with VideoReader(source.path) as video:
                    total += video.frames
            except DataError:  # reported when its turn comes
                pass
    return total


def progress_bar(what: str = "images"):
    """A progress bar with rate and time left on standard error; without a terminal only its last state."""
    require("rich")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task):
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f} {what}/s")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )


def _print_summary(summary, predictor, out: Path, elapsed: float) -> None:
    pictures = summary.images + summary.frames
    parts = [count_of(summary.images, "image")]
    if summary.videos:
        parts.append(f"{count_of(summary.videos, 'video')} with {count_of(summary.frames, 'frame')}")
    if summary.failed:
        parts.append(f"{count_of(len(summary.failed), 'input')} failed")
    print(", ".join(parts))
    if predictor.task == "forgery":
        print(f"forged: {summary.found['forged']} of {pictures} by the score of the whole picture")
    elif predictor.task == "action":
        print("actions: " + (", ".join(f"{name} {count}" for name, count in summary.found.most_common()) or "none"))
    elif predictor.task == "semantic":
        shares = {name: value / max(1, pictures) for name, value in summary.found.most_common()}
        print("pixels: " + (", ".join(f"{name} {share:.1%}" for name, share in shares.items()) or "none"))
    else:
        found = ", ".join(f"{name} {count}" for name, count in summary.found.most_common())
        total = sum(summary.found.values())
        thr = predictor.options.score_thr
        print(f"detections: {total}{f' ({found})' if found else ''}, score at least {thr:g}")
    if pictures:
        print(f"time: {summary.seconds / pictures * 1000:.0f} ms per image in the model, {elapsed:.1f} s in all")
    else:
        print("error: not one of the inputs could be read", file=sys.stderr)
    print(f"results: {out}")


def count_of(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
