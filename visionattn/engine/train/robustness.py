"""Robustness of a model: its metrics on test images degraded by JPEG compression, blur, noise and resizing."""

import csv
import io
import json
import os
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dist import is_main_process

from visionattn.data.degrade import DEGRADATION_LEVELS, degrade
from visionattn.engine.compat.checkpoint import write_text
from visionattn.engine.registry import TRANSFORMS
from visionattn.engine.train.testing import test
from visionattn.errors import ConfigError, require

__all__ = ["DegradeImage", "evaluate_robustness", "plot_robustness"]

LABELS = {"jpeg": "JPEG quality", "blur": "blur kernel", "noise": "noise variance", "resize": "scale"}


@TRANSFORMS.register_module()
class DegradeImage(BaseTransform):
    """Degrade an image without changing its annotations; see `visionattn.data.degrade`.

    Args:
        kind: ``"jpeg"``, ``"blur"``, ``"noise"`` or ``"resize"``.
        level: level of the degradation.
    """

    def __init__(self, kind: str, level: float) -> None:
        self.kind, self.level = kind, level

    def transform(self, results: dict) -> dict:
        """Degrade the image in ``results``. Noise is seeded with the name of the file."""
        name = os.path.basename(str(results.get("img_path", "")))
        results["img"] = degrade(results["img"], self.kind, self.level, zlib.crc32(name.encode()))
        return results


def evaluate_robustness(
    config: Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    kinds: Sequence[str] = tuple(DEGRADATION_LEVELS),
    on_level: Callable[[str, float, dict[str, float]], None] = lambda kind, level, metrics: None,
    distributed: bool = False,
) -> list[Path]:
    """Test a checkpoint on the original images and on every level of each degradation.

    Args:
        config: config with ``test_dataloader`` and ``test_evaluator``.
        checkpoint: the weights.
        out: folder for ``robustness.json``, ``robustness.csv`` and ``robustness.png``.
        kinds: types of degradation.
        on_level: called with the type (``"clean"`` first), the level and the metrics after each test.
        distributed: see `visionattn.engine.train.testing.test`.

    Returns:
        The files; none in processes other than the first.

    Raises:
        ConfigError: a type is unknown, or the test pipeline does not load images.
    """
    unknown = [kind for kind in kinds if kind not in DEGRADATION_LEVELS]
    if unknown or not kinds:
        raise ConfigError(
            f"`robustness` must be one or more of {', '.join(DEGRADATION_LEVELS)}, got {' '.join(unknown)}"
        )
    folder = Path(out)
    rows: list[dict[str, Any]] = []
    for kind, level in [("clean", 0.0), *((k, level) for k in kinds for level in DEGRADATION_LEVELS[k])]:
        changed = config if kind == "clean" else _degraded(config, kind, level)
        place = folder / "levels" / (kind if kind == "clean" else f"{kind}_{level:g}")
        metrics = test(changed, checkpoint, place, distributed=distributed).metrics
        rows.append({"kind": kind, "level": level, **metrics})
        on_level(kind, level, metrics)
    if not is_main_process():
        return []
    write_text(folder / "robustness.json", json.dumps({"checkpoint": str(checkpoint), "levels": rows}, indent=1) + "\n")
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "robustness.csv", text.getvalue())
    return [folder / "robustness.json", folder / "robustness.csv", plot_robustness(rows, folder / "robustness.png")]


def _degraded(config: Config, kind: str, level: float) -> Config:
    changed = deepcopy(config)
    dataset = changed.test_dataloader.dataset
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset.dataset
    steps = list(dataset.get("pipeline") or ())
    place = next((i for i, s in enumerate(steps) if str(s["type"]).rsplit(".", 1)[-1] == "LoadImageFromFile"), None)
    if place is None:
        raise ConfigError("test_dataloader.dataset.pipeline has no LoadImageFromFile, which `robustness` requires")
    steps.insert(place + 1, {"type": "visionattn.DegradeImage", "kind": kind, "level": level})
    dataset.pipeline = steps
    return changed


def plot_robustness(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Plot the metrics over the levels, with one panel per type of degradation, starting at the original images.

    Args:
        rows: dicts with ``kind``, ``level`` and the metrics.
        path: image file to write.

    Returns:
        The path.
    """
    figure_module = require("matplotlib.figure", "openmmlab")
    clean = next(row for row in rows if row["kind"] == "clean")
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != "clean"))
    names = [name for name in clean if name not in ("kind", "level")][:4]
    figure = figure_module.Figure(figsize=(3.6 * len(kinds), 3.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        levels = [row for row in rows if row["kind"] == kind]
        ticks = ["clean", *(f"{row['level']:g}" for row in levels)]
        for name in names:
            values = [row.get(name, float("nan")) for row in [clean, *levels]]
            axes.plot(range(len(ticks)), values, marker="o", markersize=3, label=name)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlabel(LABELS[kind])
        axes.grid(alpha=0.3)
    panels[0].set_ylim(0, 1 if all(0 <= clean[n] <= 1 for n in names) else None)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
