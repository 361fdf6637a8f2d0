"""Train backbones of the same cost from random weights: results/backbone_comparison.csv and a table for each task.

python benchmarks/backbone_comparison.py DATA --out runs/comparison      # trains; continues where it was stopped
python benchmarks/backbone_comparison.py DATA --collect                  # only prints the tables of the CSV

DATA has the folders camvid, bccd and nuclei of `visionattn data`. All models have the head, data, augmentation and
optimizer of the task's config. The learning rate of each model is the best of three, by runs of a quarter of the
budget. Then each model is trained for the budget in CPU time of one thread, as measured for each model in turn before
(rule "time"), and for as many iterations as the first model (rule "iterations"); the three best by time also with two
more seeds. Times are CPU times of processes with one thread, since they depend less on other processes than wall times.
"""

import argparse
import csv
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import timm
import torch
from common import RESULTS, machine, read_rows, spread

import visionattn
from visionattn.engine.train.curve import read_records

CSV = RESULTS / "backbone_comparison.csv"
CONFIGS = Path(__file__).parents[1] / "configs"
TASKS: dict[str, tuple[str, tuple[int, ...], str]] = {  # config, strides of the maps that the neck takes, metric
    "camvid": ("segmentation/semantic_fpn/semantic-fpn_dinat-pico_camvid.py", (4, 8, 16, 32), "mIoU"),
    "bccd": ("detection/atss/atss_dinat-pico_fpn_bccd.py", (8, 16, 32), "AP"),
    "nuclei": ("detection/mask_rcnn/mask-rcnn_dinat-pico_fpn_nuclei.py", (4, 8, 16, 32), "mask AP"),
}
MODELS: dict[str, dict[str, Any]] = {  # arguments of timm.create_model
    "dinat_nano": {},
    "dinat_pico": {"dilations": [[1, 6], [1, 3], [1, 2, 1, 2, 1, 2], [1, 1]]},
    "convnextv2_atto": {},
    "edgenext_xx_small": {},
    "mobilenetv4_conv_small": {},
    "fastvit_t8": {},
    "resnet10t": {},
    "resnet18": {},
}
RATES = (0.5, 1.0, 2.0)
"""Factors on the learning rate of the task's config."""
COLUMNS = (
    "task", "model", "rule", "seed", "rate", "iterations", "cpu_seconds_per_iteration", "backbone_parameters", "metric",
    "value", "metrics", "config", "machine", "torch", "timm", "visionattn", "date",
)  # fmt: skip


def write_config(task: str, model: str, rate: float, iterations: int, data: Path, folder: Path) -> Path:
    """Write the config of a run into its folder."""
    base, strides, _ = TASKS[task]
    info = timm.create_model(model, features_only=True, **MODELS[model]).feature_info
    levels = [index for index, stride in enumerate(info.reduction()) if stride in strides][-len(strides) :]
    backbone = dict(_delete_=True, type="visionattn.Backbone", model_name=model, out_indices=tuple(levels))
    backbone |= MODELS[model]
    warmup = min(100, iterations // 5)
    path = folder / f"{task}_{model}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    lr = 1.2e-3 if task == "nuclei" else 1e-3
    path.write_text(
        f"""_base_ = [{str(CONFIGS / base)!r}]
custom_data = dict(root={str(data.resolve() / task)!r})
model = dict(backbone={backbone!r}, neck=dict(in_channels={[info.channels()[index] for index in levels]}))
max_iters = {iterations}
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr={lr * rate}))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end={warmup}),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin={warmup}, end=max_iters,
         T_max={iterations - warmup}),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=200, save_best=None))
"""
    )
    return path


def train(config: Path, seed: int, core: int) -> dict[str, float]:
    """Train on one core, or continue, and return the metrics of the last validation."""
    folder = config.parent
    words = ["train", str(config), "--work-dir", str(folder), "--resume", "--seed", str(seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("a") as log:
        command = ["taskset", "-c", str(core), sys.executable, "-m", "visionattn", *words]
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
    return next(record["val"] for record in reversed(read_records(folder)) if record.get("val"))


def iteration_cost(config: Path) -> float:
    """CPU seconds of a training iteration, the median of 12, in this process."""
    from mmengine.hooks import Hook

    from visionattn.engine.config.load import load_config
    from visionattn.engine.registry import HOOKS
    from visionattn.engine.train.train import train as train_here

    moments: list[float] = []

    @HOOKS.register_module(name="CpuClock")
    class CpuClock(Hook):
        def after_train_iter(self, *arguments: Any, **options: Any) -> None:
            moments.append(time.process_time())

    cfg = load_config(str(config), ["train_cfg.val_interval=1000"])
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), dict(type="visionattn.CpuClock")]
    train_here(cfg, work_dir=config.parent / "cost", seed=0)
    return statistics.median(b - a for a, b in itertools.pairwise(moments[4:]))


def measure_costs(task: str, models: list[str], data: Path, out: Path) -> dict[str, float]:
    """CPU seconds per iteration of the models: the lower of two rounds over them."""
    rounds: list[dict[str, float]] = [{}, {}]
    for number, costs in enumerate(rounds):
        for model in models:
            folder = out / f"{task}-{model}-cost{number}"
            config = write_config(task, model, 1.0, 17, data, folder)
            words = [sys.executable, __file__, str(data), "--cost", str(config)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
            costs[model] = float(done.stdout.split()[-1])
    return {model: min(costs[model] for costs in rounds) for model in models}


class Comparison:
    """The runs of one task, in several processes; rows are written as they are finished."""

    def __init__(self, task: str, data: Path, out: Path, minutes: float, jobs: int) -> None:
        self.task, self.data, self.out, self.minutes = task, data, out, minutes
        self.rows = read_rows(CSV)
        self.cores: SimpleQueue[int] = SimpleQueue()
        for core in sorted(os.sched_getaffinity(0))[:jobs]:
            self.cores.put(core)
        self.jobs = jobs

    def found(self, rule: str, **values: Any) -> list[dict[str, str]]:
        """Rows of this task with a rule and values."""
        wanted = {"task": self.task, "rule": rule} | {key: str(value) for key, value in values.items()}
        return [row for row in self.rows if all(row[key] == value for key, value in wanted.items())]

    def add(self, model: str, rule: str, **values: Any) -> None:
        """Append a row and write the file."""
        parameters = sum(p.numel() for p in timm.create_model(model, num_classes=0, **MODELS[model]).parameters())
        constant = {
            "task": self.task, "model": model, "rule": rule, "backbone_parameters": parameters,
            "metric": TASKS[self.task][2], "config": TASKS[self.task][0], "machine": machine(),
            "torch": torch.__version__, "timm": timm.__version__, "visionattn": visionattn.__version__,
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        self.rows.append({key: str((constant | values).get(key, "")) for key in COLUMNS})
        with CSV.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def costs(self) -> dict[str, float]:
        """CPU seconds per iteration of each model, measured at the first call."""
        missing = [model for model in MODELS if not self.found("cost", model=model)]
        for model, seconds in measure_costs(self.task, missing, self.data, self.out).items():
            self.add(model, "cost", cpu_seconds_per_iteration=round(seconds, 4))
        return {row["model"]: float(row["cpu_seconds_per_iteration"]) for row in self.found("cost")}

    def run(self, model: str, rule: str, seed: int, rate: float, iterations: int) -> None:
        """Train one model, unless its row exists."""
        if self.found(rule, model=model, seed=seed, rate=rate):
            return
        core = self.cores.get()
        try:
            folder = self.out / f"{self.task}-{model}-{rule}-{seed}-{rate}"
            config = write_config(self.task, model, rate, iterations, self.data, folder)
            metrics = train(config, seed, core)
        finally:
            self.cores.put(core)
        value = metrics[TASKS[self.task][2]]
        cost = self.found("cost", model=model)[0]["cpu_seconds_per_iteration"]
        self.add(
            model, rule, seed=seed, rate=rate, iterations=iterations, cpu_seconds_per_iteration=cost,
            value=round(value, 4), metrics=json.dumps({key: round(number, 4) for key, number in metrics.items()}),
        )  # fmt: skip
        print(f"{self.task:8} {model:24} {rule:10} seed {seed} rate {rate}: {value:.4f}", flush=True)

    def all(self, runs: list[tuple[str, str, int, float, int]]) -> None:
        """Execute runs, as many at a time as there are jobs."""
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(lambda run: self.run(*run), runs))

    def rates(self) -> dict[str, float]:
        """The best learning rate of each model, as a factor."""
        best = {}
        for model in MODELS:
            rows = self.found("grid", model=model)
            best[model] = float(max(rows, key=lambda row: float(row["value"]))["rate"])
        return best

    def compare(self) -> None:
        """Execute all runs that are missing."""
        costs = self.costs()
        budget = self.minutes * 60
        lengths = {model: round(budget / cost) for model, cost in costs.items()}
        self.all([(model, "grid", 0, rate, lengths[model] // 4) for rate in RATES for model in MODELS])
        rates = self.rates()
        likely = sorted(MODELS, key=lambda model: -max(float(row["value"]) for row in self.found("grid", model=model)))
        self.all([(model, "time", 0, rates[model], lengths[model]) for model in likely])
        order = sorted(MODELS, key=lambda model: -float(self.found("time", model=model, seed=0)[0]["value"]))
        first = next(iter(MODELS))
        chosen = [*order[:3], *([first] if first not in order[:3] else [])]
        self.all([(model, "time", seed, rates[model], lengths[model]) for seed in (1, 2) for model in chosen])
        others = [model for model in MODELS if model != first]
        self.all([(model, "iterations", 0, rates[model], lengths[first]) for model in others])


def table(task: str, rows: list[dict[str, str]]) -> str:
    """A Markdown table of one task: equal time, with mean and range over the seeds, and equal iterations.

    Models whose long runs are missing come last, with the best value of their short runs.
    """
    rows = [row for row in rows if row["task"] == task]

    def values(model: str, rule: str) -> list[float]:
        return [float(row["value"]) for row in rows if row["model"] == model and row["rule"] == rule]

    timed = {row["model"]: row for row in rows if row["rule"] == "time"}
    if not timed:
        return f"{task}: no runs yet"
    first = next(iter(MODELS))
    minutes = max(int(row["iterations"]) * float(row["cpu_seconds_per_iteration"]) for row in timed.values()) / 60
    lines = [
        f"| {TASKS[task][2]} on {task} | {minutes:.0f} minutes | seeds | {minutes / 4:.1f} minutes | learning rate | "
        f"iterations in {minutes:.0f} minutes | as many iterations as {first} | backbone, M parameters | "
        "CPU s per iteration |",
        "|---" * 9 + "|",
    ]
    grid = {model: max(values(model, "grid"), default=0.0) for model in MODELS}
    means = {model: statistics.mean(values(model, "time")) if model in timed else 0.0 for model in MODELS}
    for model in sorted(MODELS, key=lambda name: (-means[name], -grid[name])):
        cost = next((row for row in rows if row["model"] == model and row["rule"] == "cost"), None)
        if cost is None:
            continue
        equal = values(model, "iterations") or (values(model, "time")[:1] if model == first else [])
        row = timed.get(model)
        cells = [
            model, spread(values(model, "time")) if row else "", len(values(model, "time")) or "",
            spread([grid[model]]) if grid[model] else "", f"{row['rate']}x" if row else "",
            row["iterations"] if row else "", spread(equal) if equal else "",
            f"{int(cost['backbone_parameters']) / 1e6:.2f}", f"{float(cost['cpu_seconds_per_iteration']):.3f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path, help="folder with the folders camvid, bccd and nuclei")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/comparison"), help="folder for the runs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--minutes", type=float, default=10, help="CPU time of a run (default: 10)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at the same time")
    parser.add_argument("--collect", action="store_true", help="do not train")
    parser.add_argument("--cost", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost:
        print(iteration_cost(args.cost))
        return
    for task in args.tasks:
        if not args.collect:
            Comparison(task, args.data, args.out, args.minutes, args.jobs).compare()
        print(f"\n{table(task, read_rows(CSV))}")


if __name__ == "__main__":
    main()
