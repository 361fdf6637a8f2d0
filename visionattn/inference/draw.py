"""Draw predictions on an image: boxes, masks, labels and class maps.

Line widths and font sizes scale with the image, those of labels also with the objects, and a class has the same color
in every image. Labels never overlap each other: each is placed at the position around its box where it covers the
least, shortened to the class name if needed, and omitted if there is no free position. If labels would cover too much
of the image, or are larger than the objects, a legend with the count of each class replaces them; masks are then drawn
without boxes, and masks of a single class in different colors, so that touching instances remain distinguishable.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from visionattn.errors import require
from visionattn.inference.heatmap import paint_heatmap

if TYPE_CHECKING:
    from visionattn.inference.results import Prediction

cv2 = require("cv2")

__all__ = ["class_color", "draw_prediction", "map_colors"]

# Colors of the first classes: distinct from each other, and from skin, sky and grass.
PALETTE_RGB = (
    (255, 82, 70),
    (38, 139, 255),
    (255, 196, 38),
    (52, 208, 104),
    (178, 102, 255),
    (20, 206, 220),
    (255, 122, 196),
    (172, 222, 40),
    (255, 140, 40),
    (98, 108, 255),
    (0, 170, 136),
    (222, 64, 160),
)
MASK_OPACITY = 0.4
CROWD_OPACITY = 0.25
"""Opacity of masks that are too many for labels: they touch and overlap each other."""
MAP_OPACITY = 0.4
SHADING = 0.5
"""Fraction of the color of a map that follows the brightness of the image, so that its texture remains visible."""
HALO_OPACITY = 0.25
BORDER_OPACITY = 0.4
FONT_WEIGHT = 500  # medium, on a scale of 100 to 1000
MAX_LABELED = 0.25
"""Labels that would cover more than this fraction of the image are replaced by a legend."""
LARGEST_LABEL = 0.8
"""So are the labels of `MANY` or more objects if they are larger than this fraction of the median object."""
MANY = 5


def class_color(index: int) -> tuple[int, int, int]:
    """Return the color (blue, green, red) of a class, the same in every image."""
    if index < len(PALETTE_RGB):
        red, green, blue = PALETTE_RGB[index]
    else:  # multiples of the golden ratio give hues that never repeat
        step = index - len(PALETTE_RGB)
        hue = step * 0.6180339887 % 1
        rgb = colorsys.hsv_to_rgb(hue, (0.85, 0.5, 0.95)[step % 3], (0.72, 1.0, 0.55)[step % 3])
        red, green, blue = (round(255 * value) for value in rgb)
    return blue, green, red


def map_colors(
    classes: tuple[str, ...], colors: tuple[tuple[int, int, int], ...] | None = None
) -> dict[int, tuple[int, int, int]]:
    """Return the color (blue, green, red) of each class index that is drawn; background classes are not.

    Args:
        classes: class names by label.
        colors: RGB color of each class; None uses `class_color`.
    """
    shown = [value for value in range(len(classes)) if _is_class(value, classes)]
    return {value: class_color(value) if colors is None else tuple(colors[value])[::-1] for value in shown}


@dataclass(frozen=True)
class _Scale:
    """Sizes in pixels for an image of a given size."""

    line: int
    font: int
    label_font: int  # of the labels of boxes
    padding: int

    @classmethod
    def of(cls, prediction: "Prediction", line_width: int | None) -> "_Scale":
        """Return sizes for the image of a prediction; text is smaller if most of the objects are small."""
        height, width = prediction.image_size
        side = (height * width) ** 0.5
        font = label_font = round(8 + side / 85) if side >= 160 else 8
        if len(prediction) and prediction.panoptic is None:
            label_font = min(font, max(10, round(0.25 * _median_area(prediction) ** 0.5)))
        return cls(
            line=line_width or (1 if side < 160 else max(2, round(side / 420))),
            font=font,
            label_font=label_font,
            padding=max(1, round(side / 350)) if side < 160 else max(2, round(side / 350)),
        )


def _median_area(prediction: "Prediction") -> float:
    return float(np.median((prediction.boxes[:, 2:] - prediction.boxes[:, :2]).clip(min=0).prod(axis=1)))


def draw_prediction(
    image: np.ndarray, prediction: "Prediction", title: tuple[str, tuple[int, int, int]] | None = None
) -> np.ndarray:
    """Return a copy of an image with a prediction drawn on it.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        prediction: what to draw, with its ``opacity``, ``line_width`` and ``hide_labels``.
        title: text and color (blue, green, red) of a label in the upper left corner.
    """
    opacity = prediction.opacity
    out = image.copy() if prediction.heatmap is None else paint_heatmap(image, prediction.heatmap, opacity)
    scale = _Scale.of(prediction, prediction.line_width)
    labels = _Labels(out.shape[0], out.shape[1], scale)
    if title is not None:
        labels.add_title(*title)
    if prediction.semantic is not None:
        shown, regions, owners = map_colors(prediction.classes, prediction.colors), prediction.semantic, None
        if prediction.panoptic is not None:
            regions, owners = prediction.panoptic.segments - 1, prediction.labels
        _paint_map(out, prediction.semantic, shown, scale, regions, MAP_OPACITY if opacity is None else opacity)
        labels.add_regions(regions, prediction.classes, shown, owners)
    if len(prediction) and prediction.panoptic is None:  # segments fill the image; their boxes would add nothing
        crowd = labels.texts(prediction) is None
        if prediction.masks is not None:
            colors = [class_color(int(label)) for label in prediction.labels]
            if crowd and len(np.unique(prediction.labels)) == 1:
                colors = _spread_colors(prediction)
            fills = colors if crowd else [_shade(color, index) for index, color in enumerate(colors)]
            default = CROWD_OPACITY if crowd else MASK_OPACITY
            _paint_masks(out, prediction, scale, colors, fills, default if opacity is None else opacity)
        if not crowd or prediction.masks is None:  # with a legend, only masks are drawn
            _paint_boxes(out, prediction, scale)
        labels.add_boxes(prediction)
    if not prediction.hide_labels:
        labels.paint(out)
    return out


def _blend(
    region: np.ndarray, where: np.ndarray, color: tuple[int, int, int], opacity: float, shading: float = 0.0
) -> None:
    """Paint a color over the pixels ``where``; the fraction ``shading`` of it is scaled by their brightness."""
    pixels, paint = region[where].astype(np.float32), np.array(color, np.float32)
    if shading:
        paint = paint * (1 - shading + shading * pixels.mean(axis=1, keepdims=True) / 128)
    region[where] = (pixels * (1 - opacity) + paint * opacity + 0.5).clip(0, 255).astype(np.uint8)


def _spread_colors(prediction: "Prediction") -> list[tuple[int, int, int]]:
    """Return a palette color for each instance: the one whose nearest instance so far is the farthest away."""
    # twice the centers: only the order of distances matters
    centers = prediction.boxes[:, :2].astype(np.float64) + prediction.boxes[:, 2:]
    nearest = np.full((len(centers), len(PALETTE_RGB)), np.inf)
    chosen = np.zeros(len(centers), dtype=int)
    for index, center in enumerate(centers):
        chosen[index] = nearest[index].argmax()
        distance = np.abs(centers - center).max(axis=1)
        nearest[:, chosen[index]] = np.minimum(nearest[:, chosen[index]], distance)
    return [class_color(int(c)) for c in chosen]


def _paint_masks(
    out: np.ndarray, prediction: "Prediction", scale: _Scale, colors: list, fills: list, opacity: float
) -> None:
    """Draw the outline of each mask in its color of `colors`, and fill it with its color of `fills`."""
    masks = prediction.masks
    for index in np.argsort(prediction.scores, kind="stable"):  # the highest score on top
        crop, (x, y) = masks.crops[index], masks.corners[index]
        if crop.size == 0:
            continue
        color = colors[index]
        _blend(out[y : y + crop.shape[0], x : x + crop.shape[1]], crop, fills[index], opacity)
        contours, _ = cv2.findContours(crop.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(x, y))
        cv2.drawContours(out, contours, -1, color, max(1, scale.line // 2), cv2.LINE_AA)


def _shade(color: tuple[int, int, int], index: int) -> tuple[int, int, int]:
    """Return the color unchanged, darker or lighter in rotation, to distinguish touching objects of one class."""
    towards, share = ((0, 0.0), (0, 0.45), (255, 0.45))[index % 3]
    return tuple(round(value + (towards - value) * share) for value in color)


def _paint_boxes(out: np.ndarray, prediction: "Prediction", scale: _Scale) -> None:
    height, width = prediction.image_size
    corners = np.rint(prediction.boxes).astype(np.int64)
    corners[:, 0::2] = corners[:, 0::2].clip(0, width - 1)
    corners[:, 1::2] = corners[:, 1::2].clip(0, height - 1)
    line = scale.line if prediction.masks is None else max(1, scale.line // 2)  # the masks already show the objects
    if line > 2:  # a faint dark halo keeps the line visible on any background, but would dominate a thin line
        halo = np.zeros((height, width), np.uint8)
        for x0, y0, x1, y1 in corners.tolist():
            cv2.rectangle(halo, (x0, y0), (x1, y1), 1, line + 2)
        _blend(out, halo.astype(bool), (0, 0, 0), HALO_OPACITY)
    for index in np.argsort(prediction.scores, kind="stable"):
        x0, y0, x1, y1 = corners[index].tolist()
        cv2.rectangle(out, (x0, y0), (x1, y1), class_color(int(prediction.labels[index])), line)


def _is_class(value: int, classes: tuple[str, ...]) -> bool:
    return 0 <= value < len(classes) and classes[value].lower() not in ("background", "authentic")


def _paint_map(
    out: np.ndarray,
    semantic: np.ndarray,
    shown: dict[int, tuple[int, int, int]],
    scale: _Scale,
    regions: np.ndarray,
    opacity: float,
) -> None:
    """Fill each class of a map, and draw lines between regions.

    Args:
        out: BGR uint8 ``[H, W, 3]``, changed in place.
        semantic: class index of each pixel ``[H, W]``.
        shown: color of each class that is drawn.
        scale: line width.
        regions: region number of each pixel ``[H, W]``: its class, or its segment.
        opacity: opacity of the colors, in [0, 1].
    """
    for value in np.unique(semantic).tolist():
        if value in shown:
            _blend(out, semantic == value, shown[value], opacity, SHADING)
    border = np.zeros(regions.shape, np.uint8)
    border[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    border[1:] |= regions[1:] != regions[:-1]
    if scale.line > 1:
        border = cv2.dilate(border, np.ones((scale.line, scale.line), np.uint8))
    _blend(out, border.astype(bool), (255, 255, 255), BORDER_OPACITY)


def _caption(name: str, score: float) -> str:
    return f"{name} {score:.2f}" if np.isfinite(score) else name  # annotations have no score


@lru_cache(maxsize=1)
def _font() -> "cv2.FontFace":
    return cv2.FontFace("sans")  # part of OpenCV, with "uni" as the fallback for missing letters


@dataclass(frozen=True)
class _Label:
    x: int
    y: int
    width: int
    height: int
    text: str
    color: tuple[int, int, int]
    font: int


class _Labels:
    """The labels of one image. Each is placed when it is added; all are painted at the end."""

    def __init__(self, height: int, width: int, scale: _Scale):
        self.height, self.width, self.scale = height, width, scale
        self.placed: list[_Label] = []
        self._use(scale.font)

    def _use(self, font: int) -> None:
        """Set the font size of the labels that are added next."""
        self.font, self.label_height = font, round(font * 1.25) + self.scale.padding

    def _text_width(self, text: str) -> int:
        box = cv2.getTextSize((0, 0), text, (0, 0), _font(), self.font, FONT_WEIGHT)
        return box[2] + 2 * self.scale.padding

    def _fit(self, text: str, share: float = 1.0) -> str:
        """Return the text, truncated with an ellipsis if it is wider than a fraction `share` of the image."""
        if self._text_width(text) <= self.width * share:
            return text
        while text and self._text_width(text + "…") > self.width * share:
            text = text[:-1]
        return text + "…" if text else ""

    def add_boxes(self, prediction: "Prediction") -> None:
        """Label boxes with class and score in descending order of score, or add a legend if labels cover too much."""
        texts = self.texts(prediction)
        if texts is None:
            self._add_legend(prediction)
            return
        names = self._names(prediction)
        boxes = prediction.boxes.astype(np.float64)
        for index in np.argsort(-prediction.scores, kind="stable"):
            for text in (texts[index], names[index]):
                spot = self._spot(boxes, int(index), self._text_width(text)) if names[index] else None
                if spot is not None:
                    self._place(*spot, text, class_color(int(prediction.labels[index])))
                    break

    def texts(self, prediction: "Prediction") -> list[str] | None:
        """Return a label for each box: class and score, or only the class; None if both would cover too much."""
        self._use(self.scale.label_font)
        names = self._names(prediction)
        limit = MAX_LABELED * self.width * self.height
        if len(names) >= MANY:
            limit = min(limit, LARGEST_LABEL * _median_area(prediction) * len(names))
        full = [_caption(name, score) for name, score in zip(names, prediction.scores, strict=True)]
        if self._area(full) <= limit:
            return full
        # a legend is clearer than many equal labels
        return names if len(set(names)) > 1 and self._area(names) <= limit else None

    def _names(self, prediction: "Prediction") -> list[str]:
        ids = [-1] * len(prediction) if prediction.track_ids is None else prediction.track_ids
        names = (f"#{track} {name}" if track >= 0 else name for track, name in zip(ids, prediction.names, strict=True))
        return [self._fit(name, 0.5) for name in names]

    def _area(self, texts: list[str]) -> int:
        return sum(map(self._text_width, texts)) * self.label_height

    def _place(self, x: int, y: int, text: str, color: tuple[int, int, int]) -> None:
        size = self._text_width(text), self.label_height
        self.placed.append(_Label(x, y, *size, text, color, self.font))

    def _add_legend(self, prediction: "Prediction") -> None:
        """Add one line per class with its number of boxes, the most frequent first, as far as they fit."""
        self._use(self.scale.font)
        values, counts = np.unique(prediction.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        room = max(1, self.height // self.label_height)
        for row, index in enumerate(order[:room]):
            name = self._fit(prediction.classes[values[index]], 0.5)
            self._place(0, row * self.label_height, f"{name}: {counts[index]}", class_color(int(values[index])))

    def _spot(self, boxes: np.ndarray, index: int, width: int) -> tuple[int, int] | None:
        """Return the position where a label of this width covers the least; None if it would overlap another label."""
        height, rim = self.label_height, (self.scale.line + 1) // 2
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
        rectangles = np.concatenate([spots, spots + np.array([width, height])], axis=1)
        free = np.ones(len(spots), dtype=bool)
        if self.placed:
            taken = np.array([(p.x, p.y, p.x + p.width, p.y + p.height) for p in self.placed], np.float64)
            free = _overlap(rectangles, taken).sum(axis=1) == 0
        if not free.any():
            return None
        # covering a small box is worse than covering a corner of a large one
        share = _overlap(rectangles, boxes) / (boxes[:, 2:] - boxes[:, :2]).clip(min=1).prod(axis=1)
        cost = share.sum(axis=1) + 0.03 * np.arange(len(spots)) + np.where(free, 0, np.inf)
        x, y = spots[int(np.argmin(cost))]
        return int(x), int(y)

    def add_regions(
        self,
        regions: np.ndarray,
        classes: tuple[str, ...],
        shown: dict[int, tuple[int, int, int]],
        owners: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """Label each region of a map at the place farthest from its borders, if the label fits.

        Args:
            regions: region number of each pixel ``[H, W]``.
            classes: class names by label.
            shown: color of each class that is labeled.
            owners: class of each region; None means that regions are classes.
        """
        self._use(self.scale.font)
        shrink = max(1, max(self.height, self.width) // 512)  # positions need not be exact
        small = regions[::shrink, ::shrink]
        values, counts = np.unique(small, return_counts=True)
        for value in values[np.argsort(-counts, kind="stable")].tolist():
            label = value if owners is None else int(owners[value]) if 0 <= value < len(owners) else -1
            if label not in shown:
                continue
            text = self._fit(classes[label])
            width, height = self._text_width(text), self.label_height
            inside = np.pad(small == value, 1).astype(np.uint8)  # the image border is a border of the region
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
            roomy = np.argwhere(depth >= 0.95 * depth.max())
            row, column = roomy[np.abs(roomy - roomy.mean(axis=0)).sum(axis=1).argmin()].tolist()
            if depth[row, column] * shrink * 2 < height * 0.8:
                continue
            x = int(np.clip(column * shrink - width // 2, 0, max(0, self.width - width)))
            y = int(np.clip(row * shrink - height // 2, 0, max(0, self.height - height)))
            taken = [p for p in self.placed if _meet((x, y, width, height), (p.x, p.y, p.width, p.height))]
            if text and not taken:
                self._place(x, y, text, shown[label])

    def add_title(self, text: str, color: tuple[int, int, int]) -> None:
        """Add a label in the upper left corner."""
        self._use(self.scale.font)
        self._place(0, 0, self._fit(text), color)

    def paint(self, out: np.ndarray) -> None:
        """Paint the labels on a BGR image, in place."""
        for label in self.placed:
            capital = 0.7 * label.font  # height of a capital letter
            end = label.x + label.width - 1, label.y + label.height - 1
            cv2.rectangle(out, (label.x, label.y), end, label.color, cv2.FILLED)
            start = label.x + self.scale.padding, label.y + round((label.height + capital) / 2)
            cv2.putText(out, label.text, start, _ink(label.color), _font(), label.font, FONT_WEIGHT)


def _ink(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever contrasts more with a BGR color (WCAG 2 relative luminance)."""
    linear = [(c / 255) / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection areas ``[N, M]`` of rectangles ``[N, 4]`` and ``[M, 4]``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)


def _meet(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Return True if two rectangles (x, y, width, height) overlap."""
    return all(
        first[axis] < second[axis] + second[axis + 2] and second[axis] < first[axis] + first[axis + 2]
        for axis in (0, 1)
    )
