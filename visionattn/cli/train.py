"""Train a model from a config; put checkpoints, log and learning curve into a work dir."""

import argparse
import os
import shlex
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", metavar="CONFIG", help="config file, such as configs/demo/digits.py")
    parser.add_argument(
        "--work-dir", metavar="DIR", help="where to put what comes out (default: work_dirs/<config name>)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="go on from this checkpoint, or from the newest in the work dir",
    )
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision: float16 on CUDA, bfloat16 on a CPU (slow on most)"
    )
    parser.add_argument(
        "--ema",
        nargs="?",
        type=float,
        const=True,
        default=False,
        metavar="MOMENTUM",
        help="validate and save a moving average of the weights; the share of new weights in it (default 0.0002, "
        "more in the first few thousand iterations)",
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="one optimizer step for N iterations, as with batches N times as large; max_iters, intervals and "
        "the learning rate's schedule go on counting iterations",
    )
    parser.add_argument(
        "--wandb",
        nargs="?",
        const=True,
        default=False,
        metavar="PROJECT",
        help="send losses, metrics and the config to Weights & Biases too (TensorBoard files are always written)",
    )
    parser.add_argument(
        "--skip-nonfinite",
        type=int,
        default=0,
        metavar="N",
        help="pass over the first N iterations whose loss or gradients are NaN or infinite, without a step, instead "
        "of stopping at once; each is reported and leaves a dump for visionattn replay",
    )
    parser.add_argument(
        "--max-bad-samples",
        type=int,
        default=0,
        metavar="N",
        help="go on without training samples that cannot be read, up to N different ones, instead of stopping at the "
        "first; their batches are smaller by them, and bad_samples.json in the work dir lists them",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="only algorithms that give the same bits every time, on a GPU too; some are slower (a CPU always does)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of all randomness (default: the config's, or 0)")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs, or processes on a CPU (default 1)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change keys of the config, such as train_cfg.max_iters=100",
    )


def run(args: argparse.Namespace) -> int:
    """Train; returns 0, after SIGTERM too if the state was saved; 130 when stopped by Ctrl-C."""
    from visionattn.errors import require

    require("mmengine")
    from visionattn.engine.train.hooks import Interrupted
    from visionattn.engine.train.launch import launch

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
        "skip_nonfinite": args.skip_nonfinite,
        "max_bad_samples": args.max_bad_samples,
        "deterministic": args.deterministic,
    }
    started = time.monotonic()
    try:
        result = launch(options, args.devices)
    except Interrupted as stop:
        print(f"stopped after iteration {stop.iteration}", end="")
        print(f", saved {_short(stop.checkpoint)}" if stop.checkpoint else "; no checkpoint was saved yet")
        if stop.checkpoint:
            print(f"go on with: {_command('train', args.config, *_where(args), '--resume')}")
        # who sends SIGTERM, such as a scheduler, has what it asked for
        return 0 if stop.signal == signal.SIGTERM and stop.checkpoint else 128 + stop.signal
    except KeyboardInterrupt:  # a second Ctrl-C, or one before training began
        from visionattn.engine.compat.checkpoint import candidates

        saved = next(iter(candidates(args.work_dir or Path("work_dirs") / Path(args.config).stem)), None)
        print(f"stopped at once; the last checkpoint is {_short(saved)}" if saved else "stopped; nothing was saved")
        return 130
    if result is None:  # another process than the first under torchrun
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


def _where(args: argparse.Namespace) -> list[str]:
    """The arguments with which a stopped run goes on."""
    words = ["--work-dir", args.work_dir] if args.work_dir else []
    words += ["--amp"] if args.amp else []
    for name in ("ema", "wandb"):
        value = getattr(args, name)
        if value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    words += ["--accumulate", str(args.accumulate)] if args.accumulate else []
    words += ["--skip-nonfinite", str(args.skip_nonfinite)] if args.skip_nonfinite else []
    words += ["--max-bad-samples", str(args.max_bad_samples)] if args.max_bad_samples else []
    words += ["--deterministic"] if args.deterministic else []
    words += ["--devices", str(args.devices)] if args.devices != 1 else []
    return words + (["--cfg-options", *args.cfg_options] if args.cfg_options else [])


def _command(command: str, *words: object) -> str:
    """The command as this person calls it: through tools/ or as visionattn."""
    script = Path(sys.argv[0])
    door = f"python {script.parent / f'{command}.py'}" if script.parent.name == "tools" else f"visionattn {command}"
    return f"{door} {shlex.join(str(w) for w in words)}"


def _short(path: object) -> str:
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith("..") else relative
