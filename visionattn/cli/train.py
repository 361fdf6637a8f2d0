"""Train a model from a config. Checkpoints, log and learning curve are written to a work dir."""

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
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument("--work-dir", metavar="DIR", help="output folder (default: work_dirs/<config name>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="resume from CHECKPOINT, or from the newest checkpoint in the work dir",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="automatic mixed precision: float16 on CUDA, bfloat16 on CPU (slow on most CPUs)",
    )
    parser.add_argument(
        "--ema",
        nargs="?",
        type=float,
        const=True,
        default=False,
        metavar="MOMENTUM",
        help="validate and save an exponential moving average of the weights; MOMENTUM is the weight of new values "
        "(default: 0.0002, larger in the first few thousand iterations)",
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="accumulate gradients over N iterations per optimizer step; max_iters, intervals and the learning rate "
        "schedule still count iterations",
    )
    parser.add_argument(
        "--wandb",
        nargs="?",
        const=True,
        default=False,
        metavar="PROJECT",
        help="log losses, metrics and the config to Weights & Biases, in addition to TensorBoard files",
    )
    parser.add_argument(
        "--skip-nonfinite",
        type=int,
        default=0,
        metavar="N",
        help="skip up to N iterations with NaN or infinite loss or gradients instead of stopping; each writes a dump "
        "for visionattn replay (default: 0)",
    )
    parser.add_argument(
        "--max-bad-samples",
        type=int,
        default=0,
        metavar="N",
        help="skip up to N training samples that cannot be read instead of stopping; they are listed in "
        "bad_samples.json in the work dir (default: 0)",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="use deterministic algorithms on GPUs too, some of which are slower (CPUs always are deterministic)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="random seed (default: that of the config, or 0)")
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


def run(args: argparse.Namespace) -> int:
    """Train and return the exit status: 0, also after SIGTERM if the state was saved, or 130 after Ctrl-C."""
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
        print(f", saved {_short(stop.checkpoint)}" if stop.checkpoint else "; no checkpoint saved")
        if stop.checkpoint:
            print(f"resume with: {_command('train', args.config, *_where(args), '--resume')}")
        # a scheduler that sends SIGTERM expects 0
        return 0 if stop.signal == signal.SIGTERM and stop.checkpoint else 128 + stop.signal
    except KeyboardInterrupt:  # a second Ctrl-C, or one before training began
        from visionattn.engine.compat.checkpoint import candidates

        saved = next(iter(candidates(args.work_dir or Path("work_dirs") / Path(args.config).stem)), None)
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


def _where(args: argparse.Namespace) -> list[str]:
    """Return the arguments for resuming a stopped run."""
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
    """Return a command line in the way this one was called: ``python tools/...`` or ``visionattn ...``."""
    script = Path(sys.argv[0])
    program = f"python {script.parent / f'{command}.py'}" if script.parent.name == "tools" else f"visionattn {command}"
    return f"{program} {shlex.join(str(w) for w in words)}"


def _short(path: object) -> str:
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith("..") else relative
