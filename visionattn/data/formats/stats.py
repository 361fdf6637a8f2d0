"""Statistics of a data set: classes, sizes of boxes and images, images without objects, and near-duplicates."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from rich.cells import cell_len

from visionattn.data.formats.finish import Dataset, Picture
from visionattn.data.formats.similar import fingerprints, similar_pairs
from visionattn.io.console import count_of

__all__ = ["describe", "near_duplicates", "sample"]

LIMITS = (32, 96)
"""Square roots of the areas between the small, medium and large objects of COCO, in pixels."""
TINY = 8
EXAMPLES = 5


def describe(dataset: Dataset) -> list[str]:
    """Return the lines of a report: a table of classes, sizes, and images without objects."""
    return [*_table(dataset), "", *_sizes(dataset)]


def _table(dataset: Dataset) -> Iterator[str]:
    splits = dataset.splits()
    names = [str(c["name"]) for c in dataset.categories]
    row = {c["id"]: index for index, c in enumerate(dataset.categories)}
    counts = np.zeros((len(names), len(splits)), int)
    images, sides = np.zeros(len(names), int), [[] for _ in names]
    for column, pictures in enumerate(splits.values()):
        for picture in pictures:
            for item in picture.objects:
                counts[row[item["category_id"]], column] += 1
                sides[row[item["category_id"]]].append(_side(item))
            images[sorted({row[item["category_id"]] for item in picture.objects})] += 1
    width = max(7, *map(cell_len, names))
    yield " " * width + "".join(f"{name or 'all':>10}" for name in splits) + f"{'images':>10}{'median side':>13}"
    for index, name in enumerate(names):
        median = f"{np.median(sides[index]):.0f} px" if sides[index] else "-"
        yield f"{name}{' ' * (width - cell_len(name))}{_row(counts[index])}{images[index]:>10}{median:>13}"
    yield f"{'objects':<{width}}{_row(counts.sum(0))}"
    yield f"{'images':<{width}}{_row([len(pictures) for pictures in splits.values()])}"
    empty = [sum(not p.objects for p in pictures) for pictures in splits.values()]
    yield f"{'empty':<{width}}{_row(empty)}  (images without objects)"


def _row(numbers: Sequence[int]) -> str:
    return "".join(f"{number:>10}" for number in numbers)


def _side(item: dict) -> float:
    """Square root of the area of a box in pixels."""
    return float(np.sqrt(item["bbox"][2] * item["bbox"][3]))


def _sizes(dataset: Dataset) -> Iterator[str]:
    objects = [(o, p) for p in dataset.pictures for o in p.objects]
    widths, heights = [p.width for p in dataset.pictures], [p.height for p in dataset.pictures]
    yield f"images: width {_range(widths)}, height {_range(heights)} pixels"
    if not objects:
        yield "no objects"
        return
    sides = np.array([_side(o) for o, _ in objects])
    shares = np.array([_side(o) / np.sqrt(p.width * p.height) for o, p in objects])
    widths, heights = [o["bbox"][2] for o, _ in objects], [o["bbox"][3] for o, _ in objects]
    yield f"boxes: width {_range(widths)}, height {_range(heights)} pixels"
    yield f"side (square root of the area): {_range(sides)} pixels, {_range(100 * shares)} % of the image"
    small, large = int((sides < LIMITS[0]).sum()), int((sides >= LIMITS[1]).sum())
    yield (
        f"small (below {LIMITS[0]} px): {small}, medium: {len(sides) - small - large}, large (from {LIMITS[1]} px): "
        f"{large}, of the small ones below {TINY} px: {int((sides < TINY).sum())}"
    )
    yield f"objects per image: {_range([len(p.objects) for p in dataset.pictures])}"
    with_masks = sum(bool(o["segmentation"]) for o, _ in objects)
    crowds = sum(o["iscrowd"] for o, _ in objects)
    yield f"objects with masks: {with_masks} of {len(objects)}" + (f"; crowds: {crowds}" if crowds else "")


def _range(values: Sequence[float]) -> str:
    """Return the smallest, the median and the largest value."""
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g} (median {middle:.4g})"


def near_duplicates(dataset: Dataset) -> list[str]:
    """Return lines with the near-duplicates between each two splits and within splits."""
    pictures = [picture for picture in dataset.pictures if picture.embedded is None]
    pairs = [(pictures[i], pictures[j]) for i, j in similar_pairs(fingerprints([p.path for p in pictures]))]
    lines = []
    for first, second in combinations(dataset.splits(), 2):
        across = [(a, b) if a.split == first else (b, a) for a, b in pairs if {a.split, b.split} == {first, second}]
        names = f"{first or 'no split'} and {second or 'no split'}"
        lines.append(f"near-duplicates in {names}: {count_of(len(across), 'pair')}")
        lines += [f"  {_name(a, dataset)}  {_name(b, dataset)}" for a, b in across[:EXAMPLES]]
    same = sum(a.split == b.split for a, b in pairs)
    lines.append(f"near-duplicates within a split: {count_of(same, 'pair')}")
    return lines


def _name(picture: Picture, dataset: Dataset) -> str:
    path = picture.path
    return str(path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else path)


def sample(dataset: Dataset, number: int, seed: int = 0) -> list[Picture]:
    """Return images for a picture sheet: first one that shows each class, rare classes first, then random ones."""
    order = [dataset.pictures[i] for i in np.random.default_rng(seed).permutation(len(dataset.pictures))]
    counts = {c["id"]: 0 for c in dataset.categories}
    for picture in order:
        for item in picture.objects:
            counts[item["category_id"]] += 1
    chosen: list[Picture] = []
    for number_, _ in sorted(counts.items(), key=lambda pair: pair[1]):
        found = [p for p in order if any(o["category_id"] == number_ for o in p.objects)]
        if found and not any(p in chosen for p in found):
            chosen.append(found[0])
    chosen += [p for p in order if p not in chosen and p.objects]
    chosen += [p for p in order if p not in chosen]
    return chosen[:number]
