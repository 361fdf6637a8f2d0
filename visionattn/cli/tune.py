"""Search for hyperparameters: train a model repeatedly with other values of config keys, with Optuna."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn tune``."""
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "--search",
        nargs="+",
        action="extend",
        required=True,
        metavar="KEY=VALUES",
        help="config keys and their values: LOW:HIGH, log:LOW:HIGH or [A,B,...], such as "
        "optim_wrapper.optimizer.lr=log:1e-4:1e-2",
    )
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="number of training runs (default: 20)")
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the study, which is continued (default: work_dirs/tune_<config name>)"
    )
    parser.add_argument("--from", dest="start_from", metavar="NAME|FILE", help="as for visionattn train")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision")
    parser.add_argument("--mlflow", nargs="?", const=True, default=False, metavar="EXPERIMENT", help="log to MLflow")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the sampler (default: 0)")
    parser.add_argument(
        "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="options of all runs"
    )


def run(args: argparse.Namespace) -> int:
    """Run the study and return 0."""
    from visionattn.errors import ConfigError, require

    require("mmengine")
    from rich.console import Console
    from rich.table import Table

    from visionattn.engine.train.study import parse_range, run_study

    if args.trials < 1:
        raise ConfigError(f"`trials` must be at least 1, got {args.trials}")
    console, ranges = Console(highlight=False, soft_wrap=True), [parse_range(text) for text in args.search]
    out = Path(args.out or Path("work_dirs") / f"tune_{Path(args.config).stem}")

    def show(trial: Any, result: Any, state: str) -> None:
        values = ", ".join(f"{key}={value}" for key, value in trial.params.items())
        metrics = next((f"{name} {value:.4f}" for name, value in result.best_metrics.items()), "") if result else state
        console.print(f"trial {trial.number}: {values}: {metrics}", markup=False)

    options = {"cfg_options": args.cfg_options, "amp": args.amp, "start_from": args.start_from, "mlflow": args.mlflow}
    study = run_study(args.config, ranges, out, args.trials, options, args.seed, show)
    complete = [trial for trial in study.trials if trial.value is not None and trial.state.name == "COMPLETE"]
    table = Table("trial", *(r.key for r in ranges), "metric", title=f"best of {len(study.trials)} trials")
    for trial in sorted(complete, key=lambda trial: -trial.value)[:5]:
        table.add_row(str(trial.number), *(f"{trial.params[r.key]:.4g}" if isinstance(trial.params[r.key], float)
                      else str(trial.params[r.key]) for r in ranges), f"{trial.value:.4f}")  # fmt: skip
    console.print(table)
    if complete:
        best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
        console.print(f"best run: {out / f'trial_{study.best_trial.number}'}")
        console.print(f"use its values: visionattn train {args.config} --cfg-options {best}", markup=False)
    return 0
