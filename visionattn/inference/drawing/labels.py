"""Labels that never overlap each other, and legends for what has no label."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from visionattn.errors import require
from visionattn.inference.drawing.cards import Label, Panel, Row, label_size, line_height, padding, panel_size
from visionattn.inference.drawing.colors import Color, class_color

if TYPE_CHECKING:
    from visionattn.inference.results import Prediction

cv2 = require("cv2")

__all__ = ["Labels", "Scale", "sums"]

SMALLEST_FONT = 10
MAX_LABELED = 0.25
"""Labels that would cover more than this fraction of the image are replaced by a legend."""
MAX_EQUAL = 0.12
"""The same for `MANY` or more objects of a single class, whose labels say little."""
LARGEST_LABEL = 0.8
"""So are the labels of `MANY` or more objects if they are larger than this fraction of the median object."""
MANY = 5
LARGEST_LEGEND = 0.25
"""Largest fraction of the image that a legend may cover; it names as many classes as this permits."""
SMALLEST_AREA = 0.25
"""Masks that are smaller than this fraction of the label of their score get none."""


@dataclass(frozen=True)
class Scale:
    """Sizes in pixels for an image of a given size."""

    line: int
    font: int
    label_font: int
    """Size of the labels of boxes, smaller than `font` if most of the objects are small."""

    @property
    def outline(self) -> float:
        """Width of the outline of a mask."""
        return max(1.4, self.line / 2)  # a thinner line would be faint where it divides pixels

    @classmethod
    def of(cls, prediction: "Prediction", line_width: int | None = None) -> "Scale":
        """Return the sizes for the image of a prediction."""
        height, width = prediction.image_size
        side = (height * width) ** 0.5
        font = label_font = max(SMALLEST_FONT, round(7 + side / 65))
        if len(prediction) and prediction.panoptic is None:
            label_font = min(font, max(SMALLEST_FONT, round(0.25 * _median_area(prediction) ** 0.5)))
        return cls(line_width or (1 if side < 160 else max(2, round(side / 420))), font, label_font)


def _median_area(prediction: "Prediction") -> float:
    return float(np.median((prediction.boxes[:, 2:] - prediction.boxes[:, :2]).clip(min=0).prod(axis=1)))


@dataclass
class Labels:
    """The labels of one image. Each is placed when it is added; all are painted at the end."""

    height: int
    width: int
    scale: Scale
    placed: list[Label | Panel] = field(default_factory=list)

    def fit(self, text: str, font: int, share: float = 1.0) -> str:
        """Return the text, truncated with an ellipsis if it is wider than a fraction `share` of the image."""
        if label_size(text, "", font)[0] <= self.width * share:
            return text
        while text and label_size(text + "…", "", font)[0] > self.width * share:
            text = text[:-1]
        return text + "…" if text else ""

    def place(
        self, x: int, y: int, text: str, value: str, color: Color, font: int | None = None, rounded: bool = False
    ) -> None:
        """Add a label whose upper left corner is (x, y); `font` None is that of the image."""
        font = font or self.scale.font
        radius = padding(font) if rounded else 0
        self.placed.append(Label(x, y, *label_size(text, value, font), text, value, color, font, radius))

    def add_title(self, text: str, values: Sequence[str], color: Color) -> None:
        """Add a label in the upper left corner, with the first of the values that fits, in a larger font."""
        font = round(1.2 * self.scale.font)
        margin = self.scale.font // 3
        room = self.width - 2 * margin
        for value in values:
            if label_size(text, value, font)[0] <= room:
                self.place(margin, margin, text, value, color, font, rounded=True)
                return
        self.place(0, 0, self.fit(text, self.scale.font), "", color)

    def add_boxes(self, prediction: "Prediction") -> None:
        """Label boxes with class and score in descending order of score, or add a legend if labels cover too much."""
        texts, font = self.texts(prediction)
        boxes = prediction.boxes.astype(np.float64)
        if texts is None:
            self.add_legend(_counts(prediction), lambda spots: _hidden(spots, boxes))
            return
        for index in np.argsort(-prediction.scores, kind="stable").tolist():
            name, value = texts[index]
            for shown in dict.fromkeys((value, "")) if name else ():
                spot = self.spot(boxes, index, label_size(name, shown, font))
                if spot is not None:
                    self.place(*spot, name, shown, class_color(int(prediction.labels[index])), font)
                    break

    def add_areas(self, areas: "Prediction", color: Color) -> None:
        """Label masks with their scores, in their order, where a label covers none of them."""
        covered = np.zeros((self.height, self.width), np.uint8)
        for crop, (x, y) in zip(areas.masks.crops, areas.masks.corners, strict=True):
            covered[y : y + crop.shape[0], x : x + crop.shape[1]] |= crop
        covered, boxes = cv2.integral(covered), areas.boxes.astype(np.float64)
        room = MAX_LABELED * self.width * self.height
        for index, score in enumerate(areas.scores.tolist()):
            size = label_size(f"{score:.2f}", "", self.scale.font)
            seen = areas.masks.crops[index].sum() >= SMALLEST_AREA * size[0] * size[1]
            spot = self.spot(boxes, index, size, covered) if room > 0 and seen else None
            if spot is not None:
                self.place(*spot, f"{score:.2f}", "", color, rounded=True)
                room -= size[0] * size[1]

    def texts(self, prediction: "Prediction") -> tuple[list[tuple[str, str]] | None, int]:
        """Return class and score for each box, or the class and no score, and the font size.

        The first is None if the labels would cover too much, in a smaller font and without scores too.
        """
        normal = self.scale.label_font
        ids = [-1] * len(prediction) if prediction.track_ids is None else prediction.track_ids
        full = [f"#{track} {name}" if track >= 0 else name for track, name in zip(ids, prediction.names, strict=True)]
        scores = [f"{score:.2f}" if np.isfinite(score) else "" for score in prediction.scores]  # none of annotations
        several, many = len(set(full)) > 1, len(full) >= MANY
        limit = (MAX_EQUAL if many and not several else MAX_LABELED) * self.width * self.height
        if many:
            limit = min(limit, LARGEST_LABEL * _median_area(prediction) * len(full))
        choices = [(scores, normal)]
        if several:  # a legend is clearer than many equal labels
            choices += [(scores, max(SMALLEST_FONT, round(0.75 * normal))), ([""] * len(full), normal)]
        for values, font in choices:
            names = [self.fit(name, font, 0.5) for name in full]
            if sum(math.prod(label_size(*pair, font)) for pair in zip(names, values, strict=True)) <= limit:
                return list(zip(names, values, strict=True)), font
        return None, normal

    def spot(
        self, boxes: np.ndarray, index: int, size: tuple[int, int], covered: np.ndarray | None = None
    ) -> tuple[int, int] | None:
        """Return the position at a box where a label hides the least; None if it would overlap another label.

        Args:
            boxes: x0, y0, x1, y1 in pixels ``[N, 4]``.
            index: which of the boxes the label belongs to.
            size: width and height of the label in pixels.
            covered: integral image ``[H + 1, W + 1]`` of pixels that the label must not cover.
        """
        (width, height), rim = size, (self.scale.line + 1) // 2
        x0, y0, x1, y1 = boxes[index]
        left, right, above, below = x0 - rim, x1 + rim - width, y0 - rim - height, y1 + rim
        spots = np.array(
            [
                (left, above),
                (left, below),
                (right, above),
                (right, below),
                (left, y0 - rim),
                (left, y1 + rim - height),
                (x1 + rim, y0 - rim),
                (x0 - rim - width, y0 - rim),
            ]
        )
        spots[:, 0] = spots[:, 0].round().clip(0, max(0, self.width - width))
        spots[:, 1] = spots[:, 1].round().clip(0, max(0, self.height - height))
        rectangles = np.concatenate([spots, spots + np.array(size)], axis=1)
        free = np.ones(len(spots), dtype=bool)
        if self.placed:
            free = _overlap(rectangles, self.taken()).sum(axis=1) == 0
        if covered is not None:
            free &= sums(covered, rectangles) == 0
        # covering a small box is worse than covering a corner of a large one
        cost = _hidden(rectangles, boxes) + 0.03 * np.arange(len(spots)) + np.where(free, 0, np.inf)
        x, y = spots[int(np.argmin(cost))]
        return (int(x), int(y)) if free.any() else None

    def taken(self) -> np.ndarray:
        """Return the rectangles of the labels, x0, y0, x1, y1 ``[N, 4]``."""
        rectangles = [(p.x, p.y, p.x + p.width, p.y + p.height) for p in self.placed]
        return np.array(rectangles, np.float64).reshape(-1, 4)

    def add_legend(self, rows: Sequence[Row], hidden: Callable[[np.ndarray], np.ndarray]) -> None:
        """Add a legend with as many rows as `LARGEST_LEGEND` permits, in the corner where it hides the least.

        It must be the first of the labels in a corner.

        Args:
            rows: the rows, the most important first.
            hidden: function that returns how much a legend would hide at each rectangle ``[N, 4]``.
        """
        font = max(SMALLEST_FONT, round(0.9 * self.scale.font))
        rows = [Row(self.fit(row.name, font, 0.4), row.value, row.color) for row in rows]
        for number in range(min(len(rows), self.height // line_height(font)), 0, -1):
            left_out = [Row(f"+{len(rows) - number} more")] if number < len(rows) else []
            shown = (*rows[:number], *left_out)
            width, height = panel_size(shown, font)
            if width * height > LARGEST_LEGEND * self.width * self.height and number > 1:
                continue
            if width > self.width or height > self.height:
                continue
            margin = max(0, min(self.scale.font // 3, (self.width - width) // 2, (self.height - height) // 2))
            xs, ys = (margin, self.width - width - margin), (margin, self.height - height - margin)
            corners = np.array([(x, y, x + width, y + height) for y in ys for x in xs], np.float64)
            x, y = corners[int(np.argmin(hidden(corners))), :2]
            self.placed.append(Panel(int(x), int(y), width, height, shown, font))
            return

    def paint(self, out: np.ndarray) -> None:
        """Paint the labels on a BGR image, in place."""
        for label in self.placed:
            label.paint(out)


def _counts(prediction: "Prediction") -> list[Row]:
    """Return a row per class with its number of boxes, the most frequent first."""
    values, counts = np.unique(prediction.labels, return_counts=True)
    # masks of a single class have many colors, see `visionattn.inference.draw`
    plain = len(values) == 1 and prediction.masks is not None
    return [
        Row(prediction.classes[values[index]], str(counts[index]), None if plain else class_color(int(values[index])))
        for index in np.argsort(-counts, kind="stable")
    ]


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection areas ``[N, M]`` of rectangles ``[N, 4]`` and ``[M, 4]``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)


def _hidden(rectangles: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the sum of the fractions of all boxes ``[M, 4]`` that each rectangle ``[N, 4]`` covers."""
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=1).prod(axis=1)
    return (_overlap(rectangles, boxes) / areas).sum(axis=1)


def sums(integral: np.ndarray, rectangles: np.ndarray) -> np.ndarray:
    """Return the sum within each rectangle ``[N, 4]``, from an integral image."""
    height, width = integral.shape[0] - 1, integral.shape[1] - 1
    x0, y0, x1, y1 = np.rint(rectangles).astype(np.int64).clip(0, [width, height, width, height]).T
    return integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
