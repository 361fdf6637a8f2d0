"""Further contents of ``results.json`` of a test: the data, the weights, package versions, and the IoU per class."""

import hashlib
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from visionattn.engine.config.custom_data import coco_datasets, load_coco
from visionattn.engine.train.runner import Runner

__all__ = ["describe_dataset", "file_sha256", "keep_class_iou", "versions"]

PACKAGES = ("visionattn", "torch", "torchvision", "timm", "numpy", "mmengine", "mmcv-lite", "mmdet", "mmsegmentation",
            "pycocotools", "triton")  # fmt: skip


def file_sha256(path: str | os.PathLike) -> str:
    """Compute the SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that can affect results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_dataset(config: Config, runner: Runner) -> dict[str, Any]:
    """Describe the test data: type, files, classes and number of images; for COCO files also objects per class."""
    part = config.test_dataloader["dataset"]
    while isinstance(part, Mapping) and isinstance(part.get("dataset"), Mapping):
        part = part["dataset"]
    dataset = runner.test_dataloader.dataset
    classes = [str(c) for c in (getattr(dataset, "metainfo", None) or {}).get("classes") or ()]
    record: dict[str, Any] = {
        "type": str(part.get("type")),
        **{k: part[k] for k in ("data_root", "ann_file") if part.get(k)},
        "data_prefix": dict(part.get("data_prefix") or {}),
        "images": len(dataset),
        "classes": classes,
    }
    for coco in coco_datasets(config.test_dataloader["dataset"]):
        path = Path(str(coco.get("data_root") or "")) / str(coco.get("ann_file") or "")
        if path.is_file():
            content = load_coco(path)
            names = {c["id"]: str(c["name"]) for c in content["categories"]}
            counts = dict.fromkeys(names.values(), 0)
            for annotation in content.get("annotations", []):
                for entry in annotation.get("segments_info", [annotation]):  # panoptic files list segments per image
                    if not entry.get("iscrowd"):
                        counts[names[entry["category_id"]]] += 1
            record["ann_sha256"], record["objects"] = file_sha256(path), counts
            break
    return record


def keep_class_iou(runner: Runner) -> dict[str, dict[str, float]]:
    """Return a dict that is filled with the IoU and accuracy (recall) of each class at the end of the test.

    mmseg only prints these values. They are in percent, like its mIoU, and -1 for classes that are neither in the
    label maps nor in the predictions. ``pixels`` is the percentage of the labeled pixels that belong to the class.

    Args:
        runner: runner whose ``IoUMetric`` is observed.
    """
    found: dict[str, dict[str, float]] = {}
    for metric in runner.test_evaluator.metrics:
        if type(metric).__name__ != "IoUMetric" or metric.format_only:
            continue

        def compute(results: list, metric: Any = metric, original: Any = metric.compute_metrics) -> dict[str, float]:
            common, union, _, labels = (np.asarray(sum(part), np.float64) for part in zip(*results, strict=True))
            for index, name in enumerate(metric.dataset_meta["classes"]):
                found[str(name)] = {
                    "IoU": _percent(common[index], union[index]),
                    "Acc": _percent(common[index], labels[index]),
                    "pixels": _percent(labels[index], labels.sum()),
                }
            return original(results)

        metric.compute_metrics = compute
    return found


def _percent(part: float, whole: float) -> float:
    return round(100 * float(part / whole), 2) if whole else -1.0
