"""The learning curve of a run, plotted from the records in ``metrics.jsonl``."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.engine.compat.checkpoint import write_text
from visionattn.errors import require

__all__ = ["METRICS_FILE", "cut_records", "draw_curve", "read_records", "short_names"]

METRICS_FILE = "metrics.jsonl"
# COCO's metrics by object size are not plotted; of the other metrics, the first four are.
_NOT_PLOTTED = re.compile("^AP[sml]$")


def read_records(work_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the records in ``metrics.jsonl`` in order, skipping lines that were truncated when a run was killed."""
    path = Path(work_dir) / METRICS_FILE
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def cut_records(work_dir: str | os.PathLike, iteration: int) -> None:
    """Delete the records after the iteration at which a run resumes, since they will be written again."""
    kept = [r for r in read_records(work_dir) if r["iter"] <= iteration]
    write_text(Path(work_dir) / METRICS_FILE, "".join(json.dumps(r) + "\n" for r in kept))


def short_names(metrics: dict[str, Any]) -> dict[str, float]:
    """Rename metrics to their usual names, the main ones first: ``coco/bbox_mAP_50`` becomes ``AP50``."""
    result: dict[str, float] = {}
    for key, value in metrics.items():
        if key.startswith("coco_panoptic/"):
            result[key.rsplit("/", 1)[-1]] = float(value)
    for prefix, label in (("bbox", ""), ("segm", "mask ")):
        for tail, name in (("", "AP"), ("_50", "AP50"), ("_75", "AP75"), ("_s", "APs"), ("_m", "APm"), ("_l", "APl")):
            for key, value in metrics.items():
                if key.rsplit("/", 1)[-1] == f"{prefix}_mAP{tail}":
                    result[label + name] = float(value)
    known = {key for key in metrics if "_mAP" in key}
    for key, value in metrics.items():
        name = key.rsplit("/", 1)[-1]
        if (
            key not in known
            and value is not None
            and np.ndim(value) == 0
            and not isinstance(value, str)
            and name not in ("time", "data_time")
        ):
            result[name] = float(value)
    return result


def draw_curve(work_dir: str | os.PathLike, title: str = "") -> Path | None:
    """Plot loss and validation metrics over the iterations.

    Args:
        work_dir: folder with the records, in which ``curve.png`` is written.
        title: title of the plot; by default the name of the folder.

    Returns:
        Path of the image, or None if there are no records.
    """
    records = read_records(work_dir)
    losses = [(r["iter"], r["loss"]) for r in records if "loss" in r]
    scores = [(r["iter"], r["val"]) for r in records if r.get("val")]
    if not losses and not scores:
        return None
    figure_module = require("matplotlib.figure", "openmmlab")  # unlike pyplot, needs no display and no global state
    figure = figure_module.Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("iteration")
    axes.set_title(title or Path(work_dir).name)
    axes.grid(alpha=0.3)
    handles = []
    if losses:
        handles += axes.plot(*zip(*losses, strict=True), color="tab:gray", linewidth=1, label="training loss")
        axes.set_ylabel("training loss")
        axes.set_ylim(bottom=0)
    if scores:
        right = axes.twinx() if losses else axes
        names = [n for n in scores[-1][1] if not _NOT_PLOTTED.search(n)][:4]
        for name in names:
            points = [(i, s[name]) for i, s in scores if s.get(name, -1) >= 0]  # COCO uses -1 for undefined metrics
            if not points:
                continue
            handles += right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        right.set_ylabel("validation")
        fractions = all(value <= 1 for _, s in scores for value in s.values())
        right.set_ylim(0, 1 if fractions else None)
    if stopped := next((r for r in records[-1:] if "stopped" in r), None):  # not if it was continued since
        axes.set_title(f"{axes.get_title()}\n{stopped['stopped']}", fontsize="small")
        if stopped["best_iter"]:  # 0: no validation was valid
            label = f"best: iteration {stopped['best_iter']}"
            handles.append(axes.axvline(stopped["best_iter"], color="black", linestyle=":", label=label))
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3), frameon=False)
    path = Path(work_dir) / "curve.png"
    figure.savefig(path)
    return path
