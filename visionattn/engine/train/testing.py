"""Test a checkpoint on the test data of a config."""

import contextlib
import io
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric

import visionattn
from visionattn.data.panoptic import PanopticStats
from visionattn.engine.amp import use_amp
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.compat import install
from visionattn.engine.compat.checkpoint import write_text
from visionattn.engine.config.build import building, keep_arguments, quiet
from visionattn.engine.config.checks import check_config
from visionattn.engine.config.class_names import checkpoint_classes, follow_checkpoint
from visionattn.engine.config.data_checks import check_data
from visionattn.engine.train.curve import short_names
from visionattn.engine.train.experiments.options import drop_backends
from visionattn.engine.train.processes import connect
from visionattn.engine.train.progress import to_log
from visionattn.engine.train.record import describe_dataset, file_sha256, keep_class_iou, versions
from visionattn.engine.train.runner import Runner
from visionattn.engine.train.same_size import by_size
from visionattn.engine.train.train import plain_errors
from visionattn.engine.weights import FitReport, fit
from visionattn.errors import ConfigError, require

__all__ = ["Substitute", "TestObserver", "TestResult", "machine", "test"]

TRAINING_KEYS = (
    "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "auto_scale_lr",
    "val_dataloader", "val_cfg", "val_evaluator", "load_from",
)  # fmt: skip


@dataclass
class TestResult:
    """Result of `test`, which is also written to ``results.json``.

    Attributes:
        metrics: metrics of the evaluator under short names (``AP``, ``AP50``, ``mIoU``).
        per_class: for COCO metrics ``{"bbox": {class: {"AP": .., "AP50": ..}}}``; for semantic segmentation, in
            percent, ``{"semantic": {class: {"IoU": .., "Acc": .., "pixels": ..}}}``; for panoptic segmentation, in
            percent, ``{"panoptic": {class: {"PQ": .., "SQ": .., "RQ": ..}}}``. Other metrics with an attribute
            ``class_table`` add theirs. The values are -1 for absent classes.
        images: number of test images.
        seconds: wall time of loading, inference and evaluation.
        files: ``results.json``, the predictions in COCO format, and those in the attribute ``files`` of a metric.
        weights: report of the conversion of the checkpoint's names; None for a program.
        annotations: annotation file of each COCO metric by the type of prediction, ``bbox`` or ``segm``.
        record: contents of ``results.json``.
    """

    __test__ = False  # not a pytest class

    metrics: dict[str, float]
    per_class: dict[str, dict[str, dict[str, float]]]
    images: int
    seconds: float
    files: list[Path]
    weights: FitReport | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


class TestObserver(Protocol):
    """Receives each prediction of a test."""

    __test__ = False  # not a pytest class

    def start(self, model: Any, config: Config, meta: Mapping[str, Any]) -> None:
        """Start with the network, the whole config, and the meta information of the test data."""

    def add(self, sample: Mapping[str, Any]) -> None:
        """Add one data sample with its prediction, as a dict."""


class _ObserverMetric(BaseMetric):
    """Passes each data sample to an observer, and computes nothing."""

    def __init__(self, observer: TestObserver) -> None:
        super().__init__()
        self.observer = observer

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            self.observer.add(sample)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {}

    def evaluate(self, size: int) -> dict[str, float]:
        return {}


class Substitute(Protocol):
    """A program that is tested in place of the model of a config.

    Attributes:
        path: its file.
        classes: class names by label.
    """

    path: Path
    classes: tuple[str, ...]

    def test_step(self, batch: dict[str, Any]) -> list[Any]:
        """Return the data samples of a batch with their predictions, as a model of mmengine does."""


def test(
    config: Config,
    checkpoint: str | os.PathLike | Substitute,
    out: str | os.PathLike,
    observer: TestObserver | None = None,  # noqa: PT028  not a pytest function
    amp: bool = False,  # noqa: PT028
    distributed: bool = False,  # noqa: PT028
) -> TestResult:
    """Run a checkpoint on ``test_dataloader`` and evaluate it with ``test_evaluator``.

    `visionattn.engine.compat.install` is called first.

    Args:
        config: the config.
        checkpoint: the weights, or a program that is tested instead, such as an exported file.
        out: folder for ``results.json`` and, for COCO metrics, ``predictions.bbox.json`` and
            ``predictions.segm.json``.
        observer: receives each prediction.
        amp: compute in half precision, see `visionattn.engine.amp.use_amp`; not for a program.
        distributed: this is one of several processes, and the environment variables of torchrun are set. Each tests a
            part of the images. The first one writes the files, and only its result has ``per_class`` and ``files``.

    Raises:
        ConfigError: the config has no test data or evaluator, or is invalid.
        CheckpointError: the checkpoint cannot be read safely or does not match the model.
        DataError: the test data is invalid.
    """
    install()
    if distributed:
        connect(config)
    name = Path(config.filename).name if config.filename else "config"
    for key in ("test_dataloader", "test_evaluator"):
        if not config.get(key):
            raise ConfigError(f"{name}: has no key {key!r}, which testing requires")
    if is_main_process():
        check_config(config, ("test",), name)
    program = None if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
    if program is None:
        loaded = checkpoints.read(checkpoint)
    else:
        checkpoint, loaded = program.path, {"meta": {"dataset_meta": {"classes": program.classes}}}
    config = deepcopy(config)
    keep_arguments(config, checkpoints.adopted_arguments(loaded))
    follow_checkpoint(config, checkpoint_classes(loaded), ("test",), str(checkpoint))
    if is_main_process():
        check_data(config, ("test",))
    folder = Path(out)
    cfg = deepcopy(config)
    for key in TRAINING_KEYS:
        cfg.pop(key, None)
    cfg.work_dir, cfg.resume, cfg.launcher = str(folder), False, "pytorch" if distributed else "none"
    # the weights in a checkpoint are the averaged ones
    cfg.custom_hooks = [h for h in cfg.get("custom_hooks") or [] if not str(h.get("type")).endswith("EMAHook")]
    cfg.setdefault("test_cfg", {})
    drop_backends(cfg)
    coco = _prepare_evaluators(cfg, folder / "predictions")
    with quiet(), building(name):
        runner = Runner.from_cfg(cfg)
    if program is None:
        report = fit(runner.bare_model, loaded, checkpoint, config=config)
        if amp:
            use_amp(runner.bare_model)
    else:
        report, runner.model.test_step = None, by_size(program.test_step)
    runner._has_loaded = True
    if observer is not None:
        observer.start(runner.bare_model, config, runner.test_dataloader.dataset.metainfo)
        # the first one, as the panoptic metric of mmdet changes the maps of the samples
        runner.test_evaluator.metrics.insert(0, _ObserverMetric(observer))
    started = time.monotonic()
    try:
        with to_log(runner.logger), building(name), plain_errors(name):
            for metric in runner.test_evaluator.metrics:
                if hasattr(metric, "output_folder"):
                    metric.output_folder = folder
            iou, panoptic = keep_class_iou(runner), _keep_panoptic(runner)
            raw = runner.test()
    finally:
        runner.progress.close()
    seconds = time.monotonic() - started
    images, metrics = len(runner.test_dataloader.dataset), short_names(raw)
    if not is_main_process():
        return TestResult(metrics, {}, images, seconds, [], report)
    per_class, files = panoptic, []
    for kind, ann_file in coco.items():
        predictions = folder / f"predictions.{kind}.json"
        if predictions.is_file():
            per_class[kind] = per_class_ap(ann_file, predictions, kind)
            files.append(predictions)
    if iou:
        per_class["semantic"] = iou
    for metric in runner.test_evaluator.metrics:
        per_class |= getattr(metric, "class_table", {})
        files += getattr(metric, "files", [])
    meta = checkpoints.meta_of(loaded)
    record = {
        "metrics": metrics,
        "per_class": per_class,
        "config": str(config.filename),
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": file_sha256(checkpoint),
        "checkpoint_iteration": meta.get("iter"),
        "started_from": meta.get("started_from"),
        "averaged_weights": "ema_state_dict" in loaded,
        "amp": amp,
        "images": images,
        "dataset": describe_dataset(config, runner),
        "seconds": round(seconds, 2),
        "seconds_per_image": round(seconds / max(images, 1), 4),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "processes": runner.world_size,
        "machine": machine(),
        "versions": versions(),
    }
    write_text(folder / "results.json", json.dumps(record, indent=1) + "\n")
    return TestResult(metrics, per_class, images, seconds, [folder / "results.json", *files], report, coco, record)


def _prepare_evaluators(cfg: Config, prefix: Path) -> dict[str, str]:
    """Make COCO evaluators write their predictions.

    Returns:
        The annotation files by the type of prediction, ``bbox`` or ``segm``.
    """
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    kinds: dict[str, str] = {}
    for evaluator in evaluators:
        if str(evaluator.get("type")).rsplit(".", 1)[-1] == "CocoMetric" and evaluator.get("ann_file"):
            evaluator["outfile_prefix"] = str(prefix)
            metric = evaluator.get("metric", "bbox")
            for kind in [metric] if isinstance(metric, str) else metric:
                if kind in ("bbox", "segm"):
                    kinds[kind] = evaluator["ann_file"]
    return kinds


def _keep_panoptic(runner: Runner) -> dict[str, dict[str, dict[str, float]]]:
    """Return a dict that is filled with the panoptic quality of each class at the end of the test.

    mmdet only prints these values.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for metric in runner.test_evaluator.metrics:
        if type(metric).__name__ != "CocoPanopticMetric" or metric.tmp_dir is None:
            continue

        def compute(results: list, metric: Any = metric, original: Any = metric.compute_metrics) -> dict[str, float]:
            measured = original(results)
            stats = PanopticStats()
            for part in results:
                stats += part
            rows = {}
            for category_id, quality in stats.pq_average(metric.categories, None)[1].items():
                counts = stats[category_id]
                occurs = counts.tp + counts.fp + counts.fn > 0
                name = metric.categories[category_id]["name"]
                rows[name] = {k.upper(): round(100 * v, 2) if occurs else -1.0 for k, v in quality.items()}
            found["panoptic"] = rows
            return measured

        metric.compute_metrics = compute
    return found


def per_class_ap(ann_file: str | os.PathLike, predictions: str | os.PathLike, kind: str) -> dict[str, dict[str, float]]:
    """Compute COCO's AP (IoU 0.50 to 0.95) and AP50 of each class with at most 1000 detections per image.

    Args:
        ann_file: the annotations.
        predictions: detections in COCO's result format.
        kind: ``"bbox"`` or ``"segm"``.

    Returns:
        ``{class: {"AP": .., "AP50": ..}}`` with values in [0, 1], or -1 for classes without annotations.
    """
    coco_api, evaluation = require("pycocotools.coco"), require("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_api.COCO(str(ann_file))
        names = {c["id"]: c["name"] for c in truth.dataset["categories"]}
        found = json.loads(Path(predictions).read_text())
        if not found:
            present = {a["category_id"] for a in truth.dataset.get("annotations", [])}
            return {n: dict.fromkeys(("AP", "AP50"), 0.0 if i in present else -1.0) for i, n in names.items()}
        measured = evaluation.COCOeval(truth, truth.loadRes(found), kind)
        measured.params.maxDets = [1, 100, 1000]
        measured.params.areaRng, measured.params.areaRngLbl = measured.params.areaRng[:1], ["all"]
        measured.evaluate()
        measured.accumulate()
    precision = measured.eval["precision"][..., 0, -1]  # thresholds x recalls x classes
    result = {}
    for position, category in enumerate(measured.params.catIds):
        column = precision[:, :, position]
        values = {"AP": column, "AP50": column[0]}
        result[names[category]] = {
            k: round(float(v[v > -1].mean()), 4) if (v > -1).any() else -1.0 for k, v in values.items()
        }
    return result


def machine() -> dict[str, Any]:
    """Describe the machine: processor, GPU, operating system and versions."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "visionattn": visionattn.__version__,
    }
