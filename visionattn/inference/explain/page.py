"""The page of ``visionattn attention`` for one image."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from visionattn.errors import ConfigError, require
from visionattn.inference.analysis.base import Section
from visionattn.inference.analysis.blocks import paragraph
from visionattn.inference.analysis.page import write_page
from visionattn.inference.explain.attention import record_attention
from visionattn.inference.explain.heads import head_importance
from visionattn.inference.explain.layercam import class_relevance
from visionattn.inference.explain.pictures import draw_query, figures, plot_heads
from visionattn.inference.explain.relevance import propagate_relevance, relevance_heatmap
from visionattn.inference.explain.rings import mean_distance
from visionattn.inference.explain.salient import salient_relevance
from visionattn.inference.heatmap import paint_heatmap, paint_signed
from visionattn.inference.writing import write_png

__all__ = ["write_image_page"]

UNSUITED = 0.5
"""Error of the conservation above which the page says that a rule does not suit a network."""


def write_image_page(
    out: Path,
    name: str,
    model: nn.Module,
    image: np.ndarray,
    tensor: Tensor,
    queries: Sequence[tuple[float, float]],
    layers: Sequence[int] | None = None,
    prune: bool = False,
    classifier: bool = True,
    rule: str | Mapping[str, str] | None = None,
    label: int | None = None,
) -> int:
    """Write ``index.html`` and its images, and return the number of attention layers.

    Args:
        out: output folder.
        name: model name.
        model: backbone in eval mode.
        image: BGR uint8 ``[H, W, 3]``.
        tensor: the image as input of the model, see `prepare`.
        queries: (x, y) positions in pixels of the image.
        layers: indices of the attention layers to draw; None draws all.
        prune: also compute `head_importance`.
        classifier: the model has a trained classifier, whose class activation map is drawn.
        rule: rule of `propagate_relevance`; None draws no relevance.
        label: class index of the class activation map and the relevance; None is the top class.

    Raises:
        ConfigError: the model has neither an attention layer that can be drawn nor a relevance map, an index in
            `layers` is out of range, or `rule` or `label` do not fit the model.
    """
    classes = int(getattr(model, "num_classes", 0) or 0)
    if rule is not None and not classes:
        raise ConfigError(f"`relevance` needs a classifier, and {name} has no classes")
    if label is not None and not (0 <= label < classes):
        raise ConfigError(
            f"`label` must be in [0, {classes - 1}] for {name}, got {label}"
            if classes
            else f"`label` needs a classifier, and {name} has no classes"
        )
    calls = record_attention(model, tensor)
    if not calls and rule is None:
        raise ConfigError(f"{name} has no attention over a feature map, so nothing can be drawn")
    chosen = list(range(len(calls))) if layers is None else list(layers)
    wrong = [n for n in chosen if not 0 <= n < len(calls)]
    if wrong:
        raise ConfigError(f"`layers` must be in [0, {len(calls) - 1}] for {name}, got {wrong[0]}")
    out.mkdir(parents=True, exist_ok=True)
    sections: list[Section] = []
    if rule is not None:
        sections.append(_relevance(out, model, image, tensor, rule, label))
    elif classifier and classes and getattr(model, "feature_info", None):
        index = _draw_cam(out / "layercam.png", model, image, tensor, label)
        what = f"Evidence for class {index}: LayerCAM, summed over all levels."
        sections.append(Section("Class activation map", [paragraph(what), figures([(out / "layercam.png", "")])]))
    for number, (x, y) in enumerate(queries if calls else ()):
        files = []
        for index in chosen:
            file = out / f"query{number}_{index:02d}.png"
            write_png(file, draw_query(image, calls[index], x, y))
            rows, columns = calls[index].grid
            files.append((file, f"{index}: {calls[index].name}, {calls[index].heads} heads, map {rows} x {columns}"))
        what = paragraph("Attention weights of each head, each scaled to its maximum.")
        sections.append(Section(f"Query at ({x:g}, {y:g})", [what, figures(files)]))
    if calls:
        size = (tensor.shape[2], tensor.shape[3])
        distances = [mean_distance(call, size) for call in calls]
        plot_heads(out / "distance.png", distances, "Mean attention distance", "pixels")
        what = paragraph("Mean attention distance of each head, and the mean over heads.")
        sections.append(Section("Distance", [what, figures([(out / "distance.png", "")])]))
    if calls and prune:
        effects = head_importance(model, tensor, label, ["head"])
        measure, what = (0, "decrease of the class probability") if classes else (2, "1 - cosine similarity")
        plot_heads(out / "importance.png", [e[:, 0, measure] for e in effects], "Each head set to zero", what)
        what = paragraph("Effect of setting the output of one head to zero.")
        sections.append(Section("Importance", [what, figures([(out / "importance.png", "")])]))
    facts = {"model": name, "input": f"{tensor.shape[3]} x {tensor.shape[2]} pixels"}
    write_page(out / "index.html", f"Attention of {name}", facts, sections)
    return len(calls)


def _relevance(
    out: Path, model: nn.Module, image: np.ndarray, tensor: Tensor, rule: str | Mapping[str, str], label: int | None
) -> Section:
    """Draw the relevance map, the salient relevance map and the class activation map beside each other."""
    found = propagate_relevance(model, tensor, None if label is None else torch.tensor([label]), rule)
    index, logit = int(found.labels[0]), float(found.logits[0, found.labels[0]])
    write_png(out / "relevance.png", paint_signed(image, _enlarged(found.map[0].sum(0), image)))
    salient = salient_relevance(relevance_heatmap(found.map)[0].mean(0))
    write_png(out / "salient.png", paint_heatmap(image, _enlarged(salient, image)))
    files = [
        (out / "relevance.png", "relevance: red for the class, blue against it"),
        (out / "salient.png", "salient relevance"),
    ]
    if getattr(model, "feature_info", None):
        _draw_cam(out / "layercam.png", model, image, tensor, index)
        files.append((out / "layercam.png", "LayerCAM"))
    pixels, absorbed = float(found.map.sum()), float(found.absorbed[0])
    shown = rule if isinstance(rule, str) else ", ".join(f"{kind} {name}" for kind, name in rule.items())
    what = (
        f"Class {index}, logit {logit:.4g}, probability {float(found.logits[0].softmax(0)[index]):.3g}; rule {shown}. "
        f"Conservation: the pixels have a relevance of {pixels:.4g}, and biases and position embeddings of "
        f"{absorbed:.4g}, together {float(found.conservation[0]):.2%} of the logit."
    )
    blocks = [paragraph(what), figures(files, beside=True)]
    if not abs(1 - float(found.conservation[0])) < UNSUITED:
        blocks.insert(1, paragraph("The rule does not suit this network, as the sum is far from the logit."))
    return Section("Relevance", blocks)


def _draw_cam(path: Path, model: nn.Module, image: np.ndarray, tensor: Tensor, label: int | None) -> int:
    """Draw the class activation map and return the class."""
    if label is None:
        with torch.no_grad():
            label = int(model(tensor)[0].argmax())
    write_png(path, paint_heatmap(image, _enlarged(class_relevance(model, tensor, label), image)))
    return label


def _enlarged(values: Tensor, image: np.ndarray) -> np.ndarray:
    cv2 = require("cv2")
    size = (image.shape[1], image.shape[0])
    return cv2.resize(values.float().cpu().numpy(), size, interpolation=cv2.INTER_LINEAR)
