"""Probe several backbones, and write the table and the pictures."""

import csv
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionattn.errors import ConfigError, require
from visionattn.inference.heatmap import paint_heatmap
from visionattn.inference.probing.features import Features, extract_features
from visionattn.inference.probing.images import LabeledImages
from visionattn.inference.probing.probes import (
    Protocol,
    efficient_probe,
    linear_probe,
    neighbor_scores,
    probe_scores,
    train_probe,
)
from visionattn.inference.writing import write_png
from visionattn.io.images import read_image

__all__ = ["METHODS", "Result", "probe_models"]

METHODS = ("knn", "linear", "efficient")
SHOWN = 8
"""Number of test images whose attention of efficient probing is drawn."""
SIDE = 224


@dataclass(frozen=True)
class Result:
    """Accuracy of one probe of one model.

    Attributes:
        model: name of the model.
        method: one of `METHODS`.
        top1, top5: accuracy on the test images in percent.
        parameters: trained parameters of the probe.
        seconds: of training and prediction on the cached features.
    """

    model: str
    method: str
    top1: float
    top5: float
    parameters: int
    seconds: float


def probe_models(
    models: Mapping[str, Callable[[], nn.Module]],
    train: LabeledImages,
    test: LabeledImages,
    out: Path,
    methods: Sequence[str] = METHODS,
    protocol: Protocol = Protocol(),  # noqa: B008  immutable
    views: int = 1,
    size: int | None = None,
    queries: int = 32,
    neighbors: int = 20,
    report: Callable[[str, float], Any] = lambda text, fraction: None,
) -> list[Result]:
    """Probe models, and write ``results.csv``, ``results.json``, ``accuracy.png`` and attention maps into a folder.

    Args:
        models: a function that creates the timm model in eval mode, by name.
        train, test: the images.
        out: the folder; the features are kept in its subfolder ``features``.
        methods: some of `METHODS`.
        protocol: training of the linear and the efficient probe.
        views: views of each training image, see `extract_features`.
        size: side of the input in pixels; None is that of each model.
        queries: number of queries of efficient probing.
        neighbors: number of neighbors.
        report: called with a text and the fraction that is done of it.

    Raises:
        ConfigError: a method is unknown, or a model has no ``forward_head``.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"`methods` must be some of {', '.join(METHODS)}, got {unknown[0]!r}")
    out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for name, create in models.items():
        model, stem = create(), re.sub(r"[^\w.-]+", "_", name)
        if not hasattr(model, "forward_head") or not hasattr(model, "forward_features"):
            raise ConfigError(f"{name}: has no forward_features and forward_head, so it cannot be probed")
        if size is not None and hasattr(model, "set_input_size"):
            model.set_input_size((size, size))
        found = []
        for part, images, count in (("train", train, views), ("test", test, 1)):
            done = [0]

            def progress(number: int, part=part, images=images, done=done, name=name) -> None:
                done[0] += number
                report(f"{name}: features of {part}", done[0] / len(images.files))

            folder = out / "features" / stem / part
            found.append(extract_features(model, images.files, folder, count, size, progress=progress))
        del model
        for method in methods:
            start = time.perf_counter()
            scores, probe = _scores(method, *found, train, protocol, queries, neighbors,
                                    lambda f, m=method, n=name: report(f"{n}: {m}", f))  # fmt: skip
            parameters = sum(p.numel() for p in probe.parameters()) if probe is not None else 0
            results.append(Result(
                name, method, *(_accuracy(scores, test.labels, k) for k in (1, 5)), parameters,
                round(time.perf_counter() - start, 1),
            ))  # fmt: skip
            _write_tables(out, results, train, test, protocol, views)
            if method == "efficient" and found[1].grid is not None:
                write_png(out / f"attention_{stem}.png", _attention(probe[0], found[1], test))
    _plot(out / "accuracy.png", results, _chance(train, test))
    return results


def _scores(
    method: str,
    train: Features,
    test: Features,
    images: LabeledImages,
    protocol: Protocol,
    queries: int,
    neighbors: int,
    progress: Callable[[float], Any],
) -> tuple[Tensor, nn.Module | None]:
    classes = len(images.classes)
    if method == "knn":
        return neighbor_scores(train.pooled[:, 0], images.labels, test.pooled[:, 0], neighbors), None
    if method == "linear":
        given, tested = train.pooled, test.pooled
        make = lambda: linear_probe(given.shape[-1], classes)  # noqa: E731
    else:
        given, tested = train.tokens, test.tokens
        make = lambda: efficient_probe(given.shape[-1], classes, queries)  # noqa: E731
    probe = train_probe(make, given, images.labels, protocol, progress)
    return probe_scores(probe, tested[:, 0]), probe


def _accuracy(scores: Tensor, labels: np.ndarray, k: int) -> float:
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return round(100 * (best == torch.from_numpy(labels)[:, None]).any(1).float().mean().item(), 2)


def _chance(train: LabeledImages, test: LabeledImages) -> float:
    """Return the accuracy of the most frequent class of the training images, in percent."""
    return 100 * float((test.labels == np.bincount(train.labels).argmax()).mean())


def _write_tables(
    out: Path, results: Sequence[Result], train: LabeledImages, test: LabeledImages, protocol: Protocol, views: int
) -> None:
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(results[0])))
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    about = {
        "classes": list(train.classes), "train": len(train.files), "test": len(test.files), "views": views,
        "most_frequent_class": round(_chance(train, test), 2), "protocol": asdict(protocol),
        "results": [asdict(result) for result in results],
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")


def _plot(path: Path, results: Sequence[Result], chance: float) -> None:
    """Draw a bar for each model and method, and a line for the most frequent class."""
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    names = list(dict.fromkeys(result.model for result in results))
    methods = list(dict.fromkeys(result.method for result in results))
    figure, axes = plt.subplots(figsize=(2.5 + 1.8 * len(names), 3.6), layout="constrained")
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        rows = [(names.index(r.model), r.top1) for r in results if r.method == method]
        bars = axes.bar([x + (number - (len(methods) - 1) / 2) * width for x, _ in rows], [y for _, y in rows], width,
                        label=method)  # fmt: skip
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.axhline(chance, color="gray", linewidth=1, linestyle="--", label="most frequent class")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="top-1 accuracy (%)", ylim=(0, 108))
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _attention(pooling: nn.Module, features: Features, images: LabeledImages) -> np.ndarray:
    """Draw the mean attention of the queries over test images that are spread over the classes; BGR uint8."""
    cv2 = require("cv2")
    rows = np.unique(np.linspace(0, len(images.files) - 1, min(SHOWN, len(images.files))).astype(int))
    with torch.inference_mode():
        maps = pooling.attention(torch.from_numpy(np.asarray(features.tokens[rows, 0])).float()).mean(1)
    cells = []
    for row, values in zip(rows, maps, strict=True):
        picture = cv2.resize(read_image(images.files[row]), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        heat = values.reshape(features.grid).numpy()
        heat = cv2.resize(heat / heat.max(), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        cells.append(np.concatenate([picture, paint_heatmap(picture, heat)]))
    return np.concatenate(cells, 1)
