"""Run a trained model on images, folders, globs, videos or point clouds, and write overlays and predictions.json.

Inputs that cannot be read are reported and skipped; the exit status is then 1.
"""

import argparse
import contextlib
import dataclasses
import itertools
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionattn.cli.source import find_trained
from visionattn.errors import ConfigError, DataError, require
from visionattn.inference.bulk import arguments as bulk
from visionattn.io.images import MAX_PIXELS
from visionattn.zoo import find_model, given_file, known_names, model_names, similar

if TYPE_CHECKING:
    from visionattn.inference.job import Job
    from visionattn.inference.predictor import Predictor
    from visionattn.io.inputs import Source

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn infer``, those of every job included."""
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT",
        help="an image, a folder (searched recursively), a glob in quotes, a video, the address of such a "
        "file (https://...), a camera (0), a stream (rtsp://...), or a point cloud (.bin .pcd .npy .npz) for models of "
        "those; none: the sample image of a model of the package",
    )  # fmt: skip
    parser.add_argument("--model", metavar="NAME", help="trained model, see visionattn models; downloaded if necessary")
    parser.add_argument("--run", metavar="WORK_DIR", help="folder of a training run; uses its best checkpoint")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the results (default: outputs/infer/<model>-<date>-<time>)"
    )
    parser.add_argument(
        "--score-thr", type=_score, default=0.3, metavar="S",
        help="discard detections with a lower score (default: 0.3); best: the threshold of each class that visionattn "
        "test --report has found for the run; FILE.json: the thresholds in this file",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=_tile, metavar="N",
        help='cut images larger than N pixels into tiles of that side; "auto" chooses the size that suits the model',
    )  # fmt: skip
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:N (default: the first GPU if there is one, else cpu)"
    )
    model = parser.add_argument_group("model", "in place of --model and --run, or other weights for --model")
    model.add_argument("--config", metavar="FILE", help="config; its weights are --checkpoint, or the best of its run")
    model.add_argument(
        "--weights", "--checkpoint", dest="checkpoint", metavar="FILE",
        help="file of the weights: of --model, of --config, or of the run that it is in",
    )  # fmt: skip
    model.add_argument("--onnx", metavar="FILE", help="file of visionattn export, run with ONNX Runtime")
    model.add_argument(
        "--provider", nargs="+", metavar="P", help="execution providers of --onnx: cpu, cuda, tensorrt, openvino, ..."
    )
    accuracy = parser.add_argument_group("accuracy and speed")
    accuracy.add_argument("--tta", action="store_true", help="also predict on mirrored images, and merge")
    accuracy.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], metavar="S",
        help="predict at these multiples of the test size and merge, such as 0.75 1 1.25 (default: 1)",
    )  # fmt: skip
    accuracy.add_argument(
        "--overlap", type=int, metavar="N",
        help="overlap of tiles in pixels; larger objects are merged from their parts (default: a quarter tile)",
    )  # fmt: skip
    accuracy.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="images of one size per forward pass (default: 8)"
    )
    accuracy.add_argument(
        "--amp", action="store_true",
        help="compute in half precision, except for boxes and maps: float16 on CUDA, bfloat16 on a CPU",
    )  # fmt: skip
    accuracy.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N",
        help=f"reject images with more pixels before decoding them (default: {MAX_PIXELS:,})",
    )  # fmt: skip
    overlays = parser.add_argument_group("overlays")
    overlays.add_argument(
        "--alpha", "--opacity", dest="opacity", type=float, metavar="O",
        help="opacity of masks, class maps and heat maps, from 0 to 1 (default: by their number)",
    )  # fmt: skip
    overlays.add_argument(
        "--line-width", type=int, metavar="N", help="width of lines (default: by the size of the image)"
    )
    overlays.add_argument("--hide-labels", action="store_true", help="draw no names and scores")
    video = parser.add_argument_group("videos, cameras and streams")
    video.add_argument(
        "--track", action="store_true", help="give objects the same id in all frames (ByteTrack; pip install trackers)"
    )
    video.add_argument("--max-frames", type=int, metavar="N", help="end each video after N frames")
    bulk.add_arguments(parser)
    for job in _jobs():
        job.add_arguments(parser)


def _tile(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"must be a number of pixels or auto, got {text!r}")


def _score(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # checked by `Options`


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
    require(*(("mmengine",) if args.onnx is None else ("onnxruntime", "onnx")))  # before anything that takes time
    from visionattn.inference.bulk import predict_bulk
    from visionattn.inference.file_run import VideoOptions
    from visionattn.inference.files import plan_files, predict_files
    from visionattn.inference.options import Options
    from visionattn.io.console import progress_bar

    video = VideoOptions(track=args.track, max_frames=args.max_frames)
    large = bulk.bulk_options(args, args.inputs, video)
    out = _out_folder(args)
    common = {field.name: getattr(args, field.name) for field in dataclasses.fields(Options) if field.name in args}
    Options(**common)  # reports a value out of range before the config is read
    inputs, downloaded, missing = _fetched(args.inputs or [_sample(args.model)], out / "inputs")

    def find(job: "type[Job]") -> "Iterable[Source]":
        """Return the input files, before the model is loaded."""
        if large is None:
            return job.find(inputs, exclude=out)
        sources = iter(job.iterate(inputs, exclude=out))
        return itertools.chain([next(sources)], sources)  # the first one raises the error of a wrong path

    if args.onnx is not None:
        predictor, about = _exported(args, common)
        sources = find(predictor.job)
    else:
        predictor, about, sources = _trained(args, find, common)
    job = predictor.job
    about |= {"downloaded": downloaded} if downloaded else {}
    plan = plan_files(sources, out) if large is None else None
    start = time.perf_counter()
    with ending_cleanly(), progress_bar(job.noun) as progress:
        bar = progress.add_task("predicting", total=_count_work(sources, job) if large is None else None)
        callbacks = {
            "on_progress": lambda count: progress.advance(bar, count),
            "on_error": lambda line: progress.console.print(f"skipped: {line}", markup=False, soft_wrap=True),
        }
        if large is None:
            overlays = args.overlays is not False
            summary = predict_files(predictor, plan, about, **callbacks, overlays=overlays, video=video)
        else:
            summary = predict_bulk(predictor, sources, inputs, out, large, about, **callbacks)
        progress.update(bar, total=progress.tasks[0].completed)  # the frame count of a video is an estimate
    _print_summary(summary, job, out, time.perf_counter() - start)
    return 1 if summary.failed or missing else 0


def _fetched(inputs: Sequence, folder: Path) -> tuple[list, dict[str, str], int]:
    """Download the addresses among the inputs.

    Returns:
        The inputs with files in place of addresses, the address of each file, and the number of addresses that failed.

    Raises:
        DataError: nothing is left.
    """
    from visionattn.io.urls import fetch_inputs

    failed: list[str] = []
    found, addresses = fetch_inputs(inputs, folder, failed.append)
    if not found:
        with contextlib.suppress(OSError):  # only empty folders are removed
            folder.rmdir()
            folder.parent.rmdir()
        raise DataError(f"{failed[0]}{f' (and {len(failed) - 1} more addresses)' if len(failed) > 1 else ''}")
    for line in failed:
        print(f"skipped: {line}")
    return found, addresses, len(failed)


def _exported(args: argparse.Namespace, common: dict) -> "tuple[Predictor, dict]":
    """Return the predictor of an exported file, and its description."""
    from visionattn.inference.job import job_by_name
    from visionattn.inference.onnx.model import OnnxModel
    from visionattn.inference.predictor import Predictor

    model = OnnxModel(args.onnx, args.provider)
    job = job_by_name(model.task)
    predictor = Predictor.from_model(model, job, **common, **_own_options(args, job))
    about = {"onnx": str(args.onnx), "task": predictor.job.name, "providers": predictor.model.providers}
    return predictor, about


def _trained(args: argparse.Namespace, find: Callable, common: dict) -> "tuple[Predictor, dict, Iterable[Source]]":
    """Return the predictor of a trained model, its description, and the input files."""
    from visionattn.engine.config.checks import check_config
    from visionattn.engine.model import config_for, model_class
    from visionattn.inference.job import job_of
    from visionattn.inference.options import pick_device, split_options
    from visionattn.inference.predictor import Predictor

    device = pick_device(args.device)
    config, checkpoint = find_trained(args.model or args.run or args.config, args.checkpoint)
    loaded_config = config_for(config, checkpoint)
    check_config(loaded_config, ())
    job = job_of(model_class(loaded_config), loaded_config)
    options = common | _own_options(args, job)
    split_options(options, job.OwnOptions)
    sources = find(job)
    with warnings.catch_warnings(), given_file(args.model, args.checkpoint):
        warnings.simplefilter("ignore")  # deprecation warnings of OpenMMLab
        predictor = Predictor(loaded_config, checkpoint, device, **options)
    for line in predictor.model.weights.lines():
        print(line)
    about = {"config": str(config), "checkpoint": str(checkpoint), "task": job.name, "device": str(device)}
    return predictor, about, sources


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
    return {name: getattr(args, name) for name in own if name in args}


def _check_model_arguments(args: argparse.Namespace) -> None:
    given = [name for name in ("config", "checkpoint") if getattr(args, name) is not None]
    if args.onnx is not None:
        others = [
            name for name in ("model", "run", "config", "checkpoint", "device") if getattr(args, name) is not None
        ]
        if others:
            raise ConfigError(f"`onnx` is a whole model; remove `{others[0]}`")
        return
    if args.provider is not None:
        raise ConfigError("`provider` applies to `onnx` only")
    if args.model is not None:
        if extra := "run" if args.run is not None else "config" if args.config is not None else None:
            raise ConfigError(f"`model` includes a config; remove `{extra}`")
        return
    if args.run is not None and given:
        raise ConfigError(f"`run` includes a config and a checkpoint; remove `{given[0]}`, or `run`")
    if args.run is None and not given:
        raise ConfigError("no model given; give `model`, `run`, `onnx`, or `config` and `checkpoint`")


def _sample(model: str | None) -> Path:
    """Return the sample image of a model of the package, the input if none is given."""
    sample = find_model(model).sample if model in model_names() else None
    if model is not None and model not in known_names():
        raise ConfigError(f"no such `model`: {model!r}; {similar(model)}")
    if sample is None:
        raise ConfigError("no INPUT given; give images, folders or globs")
    print(f"input: {sample}, the sample image of the package")
    return sample


def _out_folder(args: argparse.Namespace) -> Path:
    if args.out is None:
        name = Path(args.onnx or args.model or args.run or args.config or args.checkpoint).resolve()
        name = name.name if name.is_dir() else name.stem
        return Path("outputs", "infer", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise DataError(f"`out` {out}: is a file; give a folder")
    return out


def _count_work(sources: list, job) -> int | None:
    """Return the number of inputs and of the frames of videos, as far as the files state it; None for streams."""
    videos = [] if job.accepts_video else [source for source in sources if source.is_video]
    if any(source.address is not None for source in videos):
        return None
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
    from visionattn.inference.report import REPORT_FILE
    from visionattn.io.console import count_of

    parts = [count_of(summary.inputs, job.noun)]
    if summary.videos:
        parts.append(f"{count_of(summary.videos, 'video')} with {count_of(summary.frames, 'frame')}")
    if summary.skipped:
        parts.append(f"{summary.skipped} done before")
    if summary.failed:
        parts.append(f"{count_of(len(summary.failed), 'input')} failed")
    print(", ".join(parts))
    print(job.summary(summary.tally))
    if total := summary.tally.inputs:
        print(f"time: {summary.seconds / total * 1000:.0f} ms per {job.noun}, {elapsed:.1f} s in total")
    elif summary.failed and not summary.skipped:
        print("error: none of the inputs could be processed", file=sys.stderr)
    overview = f"; an overview is {REPORT_FILE}" if (out / REPORT_FILE).is_file() else ""
    print(f"results: {out}{overview}")
