"""The page of ``visionattn attention --heads``: what `survey_heads` found, with the numbers as CSV files."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionattn.inference.analysis.base import Section
from visionattn.inference.analysis.blocks import paragraph, table
from visionattn.inference.analysis.page import write_page
from visionattn.inference.explain.heads import MEASURES, REMOVED
from visionattn.inference.explain.patterns import Patterns, find_patterns
from visionattn.inference.explain.pictures import (
    figures,
    plot_clusters,
    plot_embedding,
    plot_heads,
    plot_importance,
    plot_offsets,
    plot_rings,
)
from visionattn.inference.explain.survey import Survey

__all__ = ["write_overview"]

TOP = 10
"""Number of heads in the table of the most important ones."""
CLASSES = 50
"""Most classes in the table on the page; the file has all."""


def write_overview(
    out: Path, title: str, facts: Mapping[str, Any], survey: Survey, names: Sequence[str], clusters: int, seed: int
) -> None:
    """Write ``index.html``, its pictures, and ``heads.csv``, ``rings.csv``, ``offsets.csv`` and ``patterns.csv``.

    Args:
        out: output folder.
        title: heading of the page.
        facts: names and values at the top of the page.
        survey: the measures.
        names: class names of the model.
        clusters: number of attention patterns.
        seed: of the autoencoder and the clusters.
    """
    out.mkdir(parents=True, exist_ok=True)
    layers = survey.layers
    maps = torch.cat([layer.maps.flatten(0, 1) for layer in layers])
    patterns = find_patterns(maps, clusters, seed)
    parts = patterns.clusters.split([len(survey.labels) * layer.heads for layer in layers])
    kinds = len(patterns.pictures)
    # The share of the images in which a head has each pattern, [heads, clusters] for each layer.
    held = [
        torch.nn.functional.one_hot(part, kinds).float().view(len(survey.labels), layer.heads, kinds).mean(0)
        for part, layer in zip(parts, layers, strict=True)
    ]
    sections = [
        _important(out, survey, names, held),
        _far(out, survey),
        _patterns(out, survey, patterns, held),
    ]
    _write(out / "heads.csv", _head_rows(survey, names))
    _write(out / "rings.csv", _ring_rows(survey))
    _write(out / "offsets.csv", _offset_rows(survey))
    _write(out / "patterns.csv", _pattern_rows(survey, patterns))
    write_page(out / "index.html", title, facts, sections)


def _measure(survey: Survey) -> int:
    """Return the index of the measure that orders heads: the probability if there is one."""
    return 2 if bool(survey.layers[0].effects[..., 0].isnan().any()) else 0


def _important(out: Path, survey: Survey, names: Sequence[str], held: Sequence[Tensor]) -> Section:
    means = [layer.effects.mean(0) for layer in survey.layers]
    plot_importance(out / "importance.png", means, MEASURES, ["head", "other heads"])
    main = _measure(survey)
    order = _order(means, main)
    rows = [
        [
            f"layer {layer}, head {head}",
            *means[layer][head, 0].tolist(),
            *means[layer][head, 1].tolist(),
            float(survey.layers[layer].distance[head]),
            f"{int(held[layer][head].argmax())} ({float(held[layer][head].max()):.0%} of images)",
        ]
        for layer, head in order[:TOP]
    ]
    titles = [f"{measure}, {what} removed" for what in ("head", "others") for measure in MEASURES]
    blocks = [
        paragraph(
            "Mean effect over the images of setting the output of a head, or of all other heads of its layer, to "
            "zero: decrease of the probability of the class of the image, Jensen-Shannon divergence of the class "
            "probabilities in bits, and 1 - cosine similarity of the features before the classifier."
        ),
        figures([(out / "importance.png", "")]),
        paragraph(f"The most important heads by {MEASURES[main]}, with their mean attention distance in pixels."),
        table(["head", *titles, "distance", "pattern"], rows, 4),
    ]
    counts = survey.labels[survey.labels >= 0].unique(return_counts=True)
    rows = []
    for label, count in sorted(zip(*(values.tolist() for values in counts), strict=True), key=lambda pair: -pair[1]):
        chosen = [layer.effects[survey.labels == label].mean(0) for layer in survey.layers]
        best = [f"{layer}.{head} ({float(chosen[layer][head, 0, 0]):.3f})" for layer, head in _order(chosen, 0)[:5]]
        rows.append([names[label], count, ", ".join(best)])
    if rows:
        blocks += [
            paragraph("The most important heads of each class: layer.head (decrease of the probability)."),
            table(["class", "images", "heads"], rows[:CLASSES]),
        ]
    return Section("Important heads", blocks)


def _order(means: Sequence[Tensor], measure: int) -> list[tuple[int, int]]:
    """Return (layer, head) from the most to the least important head."""
    heads = [(layer, head) for layer, values in enumerate(means) for head in range(len(values))]
    return sorted(heads, key=lambda place: -float(means[place[0]][place[1], 0, measure]))


def _far(out: Path, survey: Survey) -> Section:
    layers = survey.layers
    plot_rings(out / "rings.png", [layer.shares for layer in layers], [layer.per_patch for layer in layers])
    plot_heads(out / "distance.png", [layer.distance for layer in layers], "Mean attention distance", "pixels")
    files = []
    for index, layer in enumerate(layers):
        file = out / f"offsets_{index:02d}.png"
        plot_offsets(file, layer.offsets_per_patch)
        files.append((file, f"{index}: {layer.name}, map {layer.grid[0]} x {layer.grid[1]}"))
    return Section(
        "Attention over distance",
        [
            paragraph(
                "Ring k holds the patches at a Chebyshev distance of k from the query. Shares are of the attention to "
                "the patches of the map; the class token is left out."
            ),
            figures([(out / "rings.png", ""), (out / "distance.png", "")]),
            paragraph("Mean attention to a key by its position relative to the query (square root):"),
            figures(files),
        ],
    )


def _patterns(out: Path, survey: Survey, patterns: Patterns, held: Sequence[Tensor]) -> Section:
    layers, kinds = survey.layers, len(patterns.pictures)
    counts = patterns.clusters.bincount(minlength=kinds)
    titles = [f"pattern {index}: {int(count)} maps" for index, count in enumerate(counts)]
    plot_clusters(out / "clusters.png", patterns.pictures, titles)
    images = len(survey.labels)
    numbers = torch.cat([torch.full((images * layer.heads,), i) for i, layer in enumerate(layers)])
    plot_embedding(out / "embedding.png", patterns.embedding, patterns.centers, patterns.clusters, numbers)
    share = torch.cat(list(held))  # [all heads, clusters]
    effect = torch.cat([layer.effects.mean(0)[:, 0] for layer in layers])
    mean = (share.T @ effect) / share.sum(0)[:, None].clamp(min=1e-9)
    places = _order([layer.effects.mean(0) for layer in layers], _measure(survey))[:TOP]
    top = torch.stack([held[layer][head] for layer, head in places]).mean(0)
    rows = []
    for index in range(kinds):
        layer = numbers[patterns.clusters == index].float()
        spread = f"{float(layer.mean()):.1f} ({int(layer.min())} to {int(layer.max())})"
        shares = [f"{float(counts[index]) / len(numbers):.0%}", f"{float(top[index]):.0%}"]
        rows.append([f"pattern {index}", *shares, spread, *mean[index].tolist()])
    heads = ["pattern", "of all maps", f"of the {len(places)} most important heads", "mean layer (range)"]
    return Section(
        "Attention patterns",
        [
            paragraph(
                "An autoencoder embeds the attention map of each head and image, reduced to 8x8 queries (rows) and 8x8 "
                "keys (columns), and k-means groups the codes. Below: the mean map of each group (square root), the "
                "first two principal components of the codes, and the mean effect of removing a head with the pattern. "
                f"The autoencoder reconstructs {patterns.explained:.0%} of the variance."
            ),
            figures([(out / "clusters.png", ""), (out / "embedding.png", "")]),
            table([*heads, *MEASURES], rows, 4),
        ],
    )


def _head_rows(survey: Survey, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    groups = [("all", torch.ones(len(survey.labels), dtype=torch.bool))]
    groups += [(names[label], survey.labels == label) for label in survey.labels.unique().tolist() if label >= 0]
    for name, chosen in groups:
        for index, layer in enumerate(survey.layers):
            means = layer.effects[chosen].mean(0)
            for head in range(layer.heads):
                for what, values in zip(REMOVED, means[head], strict=True):
                    yield {
                        "class": name, "images": int(chosen.sum()), "layer": index, "module": layer.name, "head": head,
                        "removed": what, **{key: _shown(v) for key, v in zip(MEASURES, values, strict=True)},
                    }  # fmt: skip


def _ring_rows(survey: Survey) -> Iterator[dict[str, Any]]:
    for index, layer in enumerate(survey.layers):
        for head, (shares, single) in enumerate(zip(layer.shares, layer.per_patch, strict=True)):
            for ring, (share, one) in enumerate(zip(shares, single, strict=True)):
                yield {
                    "layer": index, "module": layer.name, "head": head, "ring": ring, "share": _shown(share),
                    "share_per_patch": _shown(one),
                }  # fmt: skip


def _offset_rows(survey: Survey) -> Iterator[dict[str, Any]]:
    for index, layer in enumerate(survey.layers):
        for head, row, column in (layer.offsets > 1e-6).nonzero().tolist():
            yield {
                "layer": index, "module": layer.name, "head": head, "rows": row - layer.grid[0] + 1,
                "columns": column - layer.grid[1] + 1, "share": _shown(layer.offsets[head, row, column]),
                "share_per_patch": _shown(layer.offsets_per_patch[head, row, column]),
            }  # fmt: skip


def _pattern_rows(survey: Survey, patterns: Patterns) -> Iterator[dict[str, Any]]:
    places = [
        (image, index, head)
        for index, layer in enumerate(survey.layers)
        for image in range(len(survey.labels))
        for head in range(layer.heads)
    ]
    for (image, layer, head), cluster, (x, y) in zip(places, patterns.clusters, patterns.embedding, strict=True):
        yield {
            "image": image, "layer": layer, "head": head, "pattern": int(cluster), "x": _shown(x), "y": _shown(y),
        }  # fmt: skip


def _shown(value: Tensor) -> str:
    return "" if value.isnan() else f"{float(value):.6g}"


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(rows)
