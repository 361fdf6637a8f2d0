"""Run a trained model on images, folders, globs, videos or point clouds, and write overlays and predictions.json.

Inputs that cannot be read are reported and skipped; the exit status is then 1.
"""

import argparse
import contextlib
import dataclasses
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from visionattn.cli.source import find_trained
from visionattn.errors import ConfigError, DataError, require
from visionattn.io.images import MAX_PIXELS

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn infer``, those of every job included."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="an image, a folder (searched recursively), a glob in quotes, a video, or a point cloud "
        "(.bin .pcd .npy .npz) for models of those",
    )
    model = parser.add_argument_group("model", "a model of the package, a training run, or a config and a checkpoint")
    model.add_argument("--model", metavar="NAME", help="trained model of the package, see visionattn models")
    model.add_argument("--run", metavar="WORK_DIR", help="folder of a training run; uses its best checkpoint")
    model.add_argument("--config", metavar="FILE", help="config; its weights are --checkpoint, or the best of its run")
    model.add_argument("--checkpoint", metavar="FILE", help="weights, of --config or of the run that they are in")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the results (default: outputs/infer/<model>-<date>-<time>)"
    )
    parser.add_argument(
        "--score-thr", type=float, default=0.3, metavar="S", help="discard detections with a lower score (default: 0.3)"
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="N",
        help='cut images larger than N pixels into tiles of that side; "auto" chooses the size that suits the model',
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="N",
        help="overlap of tiles in pixels; larger objects are merged from their parts (default: a quarter tile)",
    )
    parser.add_argument(
        "--opacity",
        type=float,
        metavar="O",
        help="opacity of masks, class maps and heat maps in overlays, from 0 to 1 (default: by their number)",
    )
    parser.add_argument(
        "--line-width", type=int, metavar="N", help="line width in overlays (default: by the size of the image)"
    )  # fmt: skip
    parser.add_argument("--tta", action="store_true", help="also predict on mirrored images, and merge")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="predict at these multiples of the test size and merge, such as 0.75 1 1.25 (default: 1)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="images of one size per forward pass (default: 8)"
    )
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:N (default: the first GPU if there is one, else cpu)"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"reject images with more pixels before decoding them (default: {MAX_PIXELS:,})",
    )
    for job in _jobs():
        job.add_arguments(parser)


def _tile(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"must be a number of pixels or auto, got {text!r}")


def _jobs() -> list:
    """Return every job, or none without OpenMMLab, whose absence `run` reports."""
    try:
        import visionattn.openmmlab  # noqa: F401  the import adds the jobs
    except ImportError:
        return []
    from visionattn.inference.job import jobs

    return jobs()


def run(args: argparse.Namespace) -> int:
    """Predict on the inputs and return the exit status, which is 1 if an input could not be read."""
    _check_model_arguments(args)
    require("mmengine")  # before anything that takes time
    from visionattn.engine.config.checks import check_config
    from visionattn.engine.model import config_for, model_class
    from visionattn.inference.files import plan_files, predict_files
    from visionattn.inference.job import job_of
    from visionattn.inference.options import Options, pick_device, split_options
    from visionattn.inference.predictor import Predictor
    from visionattn.io.console import progress_bar

    device = pick_device(args.device)
    out = _out_folder(args)
    common = {field.name: getattr(args, field.name) for field in dataclasses.fields(Options) if field.name in args}
    Options(**common)  # reports a value out of range before the config is read
    config, checkpoint = find_trained(args.model or args.run or args.config, args.checkpoint)
    loaded_config = config_for(config, checkpoint)
    check_config(loaded_config, ())
    job = job_of(model_class(loaded_config), loaded_config)
    options = common | _own_options(args, job)
    split_options(options, job.OwnOptions)
    sources = job.find(args.inputs, exclude=out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of OpenMMLab
        predictor = Predictor(loaded_config, checkpoint, device, **options)
    plan = plan_files(sources, out)
    about = {"config": str(config), "checkpoint": str(checkpoint), "task": job.name, "device": str(device)}
    start = time.perf_counter()
    with ending_cleanly(), progress_bar(job.noun) as progress:
        bar = progress.add_task("predicting", total=_count_work(sources, job))
        summary = predict_files(
            predictor,
            plan,
            about,
            on_progress=lambda count: progress.advance(bar, count),
            on_error=lambda line: progress.console.print(f"skipped: {line}", markup=False, soft_wrap=True),
        )
        progress.update(bar, total=progress.tasks[0].completed)  # the frame count of a video is an estimate
    _print_summary(summary, predictor.job, out, time.perf_counter() - start)
    return 1 if summary.failed else 0


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C in the block, so that result files are finished or removed."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _own_options(args: argparse.Namespace, job) -> dict:
    """Return the options of the model's job.

    Raises:
        ConfigError: an option of another job was given.
    """
    own = {field.name for field in dataclasses.fields(job.OwnOptions)}
    for other in _jobs():
        for field in dataclasses.fields(other.OwnOptions):
            if field.name not in own and getattr(args, field.name) != field.default:
                raise ConfigError(f"`{field.name}` is an option of {other.name} models; this is a {job.name} model")
    return {name: getattr(args, name) for name in own}


def _check_model_arguments(args: argparse.Namespace) -> None:
    given = [name for name in ("config", "checkpoint") if getattr(args, name) is not None]
    if args.model is not None:
        if args.run is not None or given:
            raise ConfigError(f"`model` includes a config and weights; remove `{'run' if args.run else given[0]}`")
        return
    if args.run is not None and given:
        raise ConfigError(f"`run` includes a config and a checkpoint; remove `{given[0]}`, or `run`")
    if args.run is None and not given:
        raise ConfigError("no model given; give `model`, `run`, or `config` and `checkpoint`")


def _out_folder(args: argparse.Namespace) -> Path:
    if args.out is None:
        name = Path(args.model or args.run or args.config or args.checkpoint).resolve()
        name = name.name if name.is_dir() else name.stem
        return Path("outputs", "infer", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise DataError(f"`out` {out}: is a file; give a folder")
    return out


def _count_work(sources: list, job) -> int:
    """Return the number of inputs, and of the frames of videos as far as the files state it."""
    videos = [] if job.accepts_video else [source for source in sources if source.is_video]
    total = len(sources) - len(videos)
    for source in videos:
        from visionattn.inference.video import VideoReader

        try:
            with VideoReader(source.path) as video:
                total += video.frames
        except DataError:  # reported when the file is read
            pass
    return total


def _print_summary(summary, job, out: Path, elapsed: float) -> None:
    from visionattn.io.console import count_of

    parts = [count_of(summary.inputs, job.noun)]
    if summary.videos:
        parts.append(f"{count_of(summary.videos, 'video')} with {count_of(summary.frames, 'frame')}")
    if summary.failed:
        parts.append(f"{count_of(len(summary.failed), 'input')} failed")
    print(", ".join(parts))
    print(job.summary(summary.tally))
    if total := summary.tally.inputs:
        print(f"time: {summary.seconds / total * 1000:.0f} ms per {job.noun}, {elapsed:.1f} s in total")
    else:
        print("error: none of the inputs could be read", file=sys.stderr)
    print(f"results: {out}")
