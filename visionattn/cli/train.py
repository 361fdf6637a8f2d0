"""Train a model from a config, or on a folder of data. Checkpoints, log and learning curve are written to a work dir.

With --data FOLDER and no CONFIG, the format, the task, the config and its options are chosen from the data and printed.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn train``."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="config file, or the name of one of the package")
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="folder of images and annotations (COCO, YOLO, VOC, LabelMe, CVAT, index masks, folders of classes); "
        "with CONFIG, its custom_data.root",
    )
    parser.add_argument(
        "--work-dir", metavar="DIR", help="output folder (default: work_dirs/<name of the config or of the data>)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="resume from CHECKPOINT, or from the newest checkpoint in the work dir",
    )
    parser.add_argument(
        "--from",
        dest="start_from",
        metavar="NAME|FILE",
        help="start from other weights: a model of this package (nuclei), the folder of a run, a checkpoint, a "
        "published file, or the name of a pretrained timm model; not loaded again by --resume",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="automatic mixed precision: float16 on CUDA, bfloat16 on CPU (slow on most CPUs)",
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="number of GPUs, or of processes on a CPU (default: 1); CUDA_VISIBLE_DEVICES selects GPUs, and none if it "
        "is empty",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config keys, such as train_cfg.max_iters=100",
    )
    chosen = parser.add_argument_group("with --data and no CONFIG", "each is chosen from the data unless it is given")
    chosen.add_argument("--task", metavar="T", help="detection, instance, semantic or localization")
    chosen.add_argument("--model", metavar="NAME", help="backbone, a model name of timm, such as dinat-mini")
    chosen.add_argument("--epochs", type=float, metavar="N", help="number of epochs")
    chosen.add_argument("--size", type=int, metavar="S", help="longer side of the resized images in pixels")
    chosen.add_argument("--batch", type=int, metavar="B", help="images per iteration")
    chosen.add_argument("--lr", type=float, metavar="L", help="learning rate")
    tuning = parser.add_argument_group("fine-tuning")
    tuning.add_argument(
        "--freeze",
        type=_stages,
        metavar="N",
        help="freeze the stem and the first N stages of the backbone (0: only the stem), or all of it (all)",
    )
    tuning.add_argument(
        "--layer-decay",
        type=float,
        metavar="RATE",
        help="layer-wise learning rates: the rate of each layer of the backbone is RATE times that of the next one, "
        "such as 0.75",
    )
    tuning.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N validations without an improvement of the validation metric (that of save_best, else the "
        "first one); the best checkpoint is kept",
    )
    tuning.add_argument(
        "--partial",
        action="store_true",
        help="load the tensors of load_from that match the model, instead of stopping if others than those of another "
        "number of classes differ",
    )
    optimization = parser.add_argument_group("optimization")
    optimization.add_argument(
        "--ema",
        nargs="?",
        type=float,
        const=True,
        default=False,
        metavar="MOMENTUM",
        help="validate and save an exponential moving average of the weights; MOMENTUM is the weight of new values "
        "(default: 0.0002, larger in the first few thousand iterations)",
    )
    optimization.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="accumulate gradients over N iterations per optimizer step; max_iters, intervals and the learning rate "
        "schedule still count iterations",
    )
    optimization.add_argument("--seed", type=int, metavar="N", help="random seed (default: that of the config, or 0)")
    optimization.add_argument(
        "--deterministic",
        action="store_true",
        help="use deterministic algorithms on GPUs too, some of which are slower (CPUs always are deterministic)",
    )
    optimization.add_argument(
        "--shard-optimizer",
        action="store_true",
        help="divide the state of the optimizer among the processes to save memory; results and checkpoints are the "
        "same (no effect with one process)",
    )
    tolerated = parser.add_argument_group("bad data and values")
    tolerated.add_argument(
        "--skip-nonfinite",
        type=int,
        default=0,
        metavar="N",
        help="skip up to N iterations with NaN or infinite loss or gradients instead of stopping; each writes a dump "
        "for visionattn replay (default: 0)",
    )
    tolerated.add_argument(
        "--max-bad-samples",
        type=int,
        default=0,
        metavar="N",
        help="skip up to N training samples that cannot be read instead of stopping; they are listed in "
        "bad_samples.json in the work dir (default: 0)",
    )
    logging = parser.add_argument_group("logging")
    logging.add_argument(
        "--wandb",
        nargs="?",
        const=True,
        default=False,
        metavar="PROJECT",
        help="log losses, metrics and the config to Weights & Biases, in addition to TensorBoard files",
    )
    logging.add_argument(
        "--mlflow",
        nargs="?",
        const=True,
        default=False,
        metavar="EXPERIMENT",
        help="log the same and the best checkpoint to MLflow (MLFLOW_TRACKING_URI, or MLflow's default)",
    )


def run(args: argparse.Namespace) -> int:
    """Train and return the exit status: 0, also after SIGTERM if the state was saved, or 130 after Ctrl-C."""
    from visionattn.errors import require

    require("mmengine")
    from visionattn.engine.train.hooks import Interrupted
    from visionattn.engine.train.launch import launch

    _check_arguments(args)
    options = {
        "config": args.config,
        "cfg_options": args.cfg_options,
        "work_dir": args.work_dir,
        "resume": args.resume,
        "amp": args.amp,
        "seed": args.seed,
        "ema": args.ema,
        "accumulate": args.accumulate,
        "wandb": args.wandb,
        "mlflow": args.mlflow,
        "skip_nonfinite": args.skip_nonfinite,
        "max_bad_samples": args.max_bad_samples,
        "deterministic": args.deterministic,
        "partial": args.partial,
        "start_from": args.start_from,
        "freeze": args.freeze,
        "layer_decay": args.layer_decay,
        "patience": args.patience,
        "shard_optimizer": args.shard_optimizer,
    }
    if args.config is None:
        options |= _planned(args)
    elif args.data is not None:
        options["cfg_options"] = [f"custom_data.root={args.data}", *args.cfg_options]
    started = time.monotonic()
    try:
        result = launch(options, args.devices)
    except Interrupted as stop:
        print(f"stopped after iteration {stop.iteration}", end="")
        print(f", saved {_short(stop.checkpoint)}" if stop.checkpoint else "; no checkpoint saved")
        if stop.checkpoint:
            print(f"resume with: {_command('train', *_where(args), '--resume')}")
        # a scheduler that sends SIGTERM expects 0
        return 0 if stop.signal == signal.SIGTERM and stop.checkpoint else 128 + stop.signal
    except KeyboardInterrupt:  # a second Ctrl-C, or one before training began
        from visionattn.engine.compat.checkpoint import candidates

        saved = next(iter(candidates(options["work_dir"] or Path("work_dirs") / Path(args.config).stem)), None)
        print(f"stopped at once; last checkpoint: {_short(saved)}" if saved else "stopped at once; no checkpoint saved")
        return 130
    if result is None:  # not the first process under torchrun
        return 0
    print(f"done: {result.iterations} iterations in {timedelta(seconds=round(time.monotonic() - started))}")
    if result.best_metrics:
        from visionattn.engine.train.progress import format_metrics

        print(f"best validation  {format_metrics(result.best_metrics)}")
    for label, path in (
        ("checkpoint", result.best or result.checkpoint),
        ("curve", result.curve),
        ("log", result.log),
    ):
        if path:
            print(f"{label:<11}{_short(path)}")
    print(f"next: {_command('infer', 'IMAGE_OR_FOLDER', '--run', _short(result.work_dir))}")
    return 0


PLANNED = ("task", "model", "epochs", "size", "batch", "lr")
"""Options that are chosen from the data."""


def _check_arguments(args: argparse.Namespace) -> None:
    """Raise `ConfigError` if arguments are missing or exclude each other."""
    from visionattn.errors import ConfigError
    from visionattn.io.configs import find_config
    from visionattn.zoo import known_names

    name = args.config
    if name is None and args.data is None:
        raise ConfigError("give a CONFIG (`visionattn configs` lists those of the package), or `data` FOLDER")
    extra = next((option for option in PLANNED if getattr(args, option) is not None), None)
    if name is not None and extra is not None:
        raise ConfigError(f"`{extra}` requires `data` without CONFIG; change the keys of the config with `cfg_options`")
    if name in known_names() and not find_config(name).is_file():
        raise ConfigError(
            f"{name} is a trained model and not a config; use: {_command('train', 'CONFIG', '--from', name)}"
        )


def _planned(args: argparse.Namespace) -> dict:
    """Choose config, options, start weights and work dir from the data, and print the choices on the first process."""
    import visionattn.openmmlab  # noqa: F401  adds the jobs
    from visionattn.engine.auto.plan import Wishes, merged, plan_training
    from visionattn.inference.job import jobs

    wishes = Wishes(
        **{name: getattr(args, name) for name in PLANNED}, start_from=args.start_from, cfg_options=args.cfg_options
    )
    work_dir = args.work_dir or str(Path("work_dirs") / Path(args.data).resolve().name)
    first = int(os.environ.get("RANK", "0")) == 0
    if args.resume and (config := _config_of_run(args.resume, work_dir)) is not None:
        if first:
            print(f"resuming with the config of the run, {_short(config)}; nothing is chosen from the data again")
        return {"config": str(config), "start_from": None, "work_dir": work_dir}
    plan = plan_training(args.data, jobs(), wishes)
    if first:
        print(f"training on {args.data}", *plan.lines(), sep="\n")
    return {
        "config": plan.config,
        "cfg_options": merged(plan.options, args.cfg_options),
        "start_from": plan.start_from,
        "work_dir": work_dir,
    }


def _config_of_run(resume: bool | str, work_dir: str) -> Path | None:
    """Return the config of the run that is resumed, or None if there is no run yet."""
    from visionattn.engine.compat.checkpoint import candidates

    folder = Path(work_dir) if resume is True else Path(resume).parent
    configs = sorted(folder.glob("*.py"), key=lambda path: path.stat().st_mtime_ns)
    return configs[-1] if configs and any(candidates(folder)) else None


def _stages(text: str) -> int | str:
    if text != "all" and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"must be a number of stages, or all, got {text!r}")
    return text if text == "all" else int(text)


def _where(args: argparse.Namespace) -> list[str]:
    """Return the arguments for resuming a stopped run."""
    words = [args.config] if args.config else []
    for name in ("data", *PLANNED, "work_dir"):
        value = getattr(args, name)
        words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)] * (
            value is not None
        )
    words += ["--amp"] if args.amp else []
    for name in ("ema", "wandb", "mlflow"):
        value = getattr(args, name)
        if value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    words += ["--from", args.start_from] if args.start_from else []
    for name in ("freeze", "layer_decay", "patience", "accumulate"):
        value = getattr(args, name)
        words += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    words += ["--skip-nonfinite", str(args.skip_nonfinite)] if args.skip_nonfinite else []
    words += ["--max-bad-samples", str(args.max_bad_samples)] if args.max_bad_samples else []
    words += ["--deterministic"] if args.deterministic else []
    words += ["--partial"] if args.partial else []
    words += ["--shard-optimizer"] if args.shard_optimizer else []
    words += ["--devices", str(args.devices)] if args.devices != 1 else []
    return words + (["--cfg-options", *args.cfg_options] if args.cfg_options else [])


def _command(command: str, *words: object) -> str:
    """Return a command line in the way this one was called: ``python tools/...`` or ``visionattn ...``."""
    script = Path(sys.argv[0])
    program = f"python {script.parent / f'{command}.py'}" if script.parent.name == "tools" else f"visionattn {command}"
    return f"{program} {shlex.join(str(w) for w in words)}"


def _short(path: object) -> str:
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith("..") else relative
