"""Draw predictions on an image: boxes, masks, labels and class maps.

Line widths and font sizes scale with the image, those of labels also with the objects, and a class has the same color
in every image. Labels never overlap each other: each is placed at the position around its box where it covers the
least, shortened to the class name if needed, and omitted if there is no free position. If labels would cover too much
of the image, or are larger than the objects, a legend with the count of each class replaces them; masks are then drawn
without boxes, and masks of a single class in different colors, so that touching instances remain distinguishable.

Labels of a class map are inside their regions and contain the share of the image that the region covers. A legend in
the corner where it hides the least lists the classes whose regions have no space for a label.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from visionattn.inference.drawing.colors import PALETTE_RGB, SHADES, Color, class_color, map_colors, shade, spread
from visionattn.inference.drawing.labels import Labels, Scale
from visionattn.inference.drawing.regions import label_regions
from visionattn.inference.drawing.shapes import paint_boxes, paint_map, paint_masks
from visionattn.inference.heatmap import paint_heatmap

if TYPE_CHECKING:
    from visionattn.inference.results import Prediction

__all__ = ["class_color", "draw_areas", "draw_prediction", "map_colors"]

MASK_OPACITY = 0.4
CROWD_OPACITY = 0.25
"""Opacity of masks that are too many for labels: they touch and overlap each other."""
MAP_OPACITY = 0.4


def draw_prediction(image: np.ndarray, prediction: "Prediction") -> np.ndarray:
    """Return a copy of an image with a prediction drawn on it.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        prediction: what to draw, with its ``opacity``, ``line_width`` and ``hide_labels``.
    """
    opacity = prediction.opacity
    out = image.copy() if prediction.heatmap is None else paint_heatmap(image, prediction.heatmap, opacity)
    scale = Scale.of(prediction, prediction.line_width)
    labels, panoptic = Labels(out.shape[0], out.shape[1], scale), prediction.panoptic
    if prediction.semantic is not None:
        shown, regions, owners = map_colors(prediction.classes, prediction.colors), prediction.semantic, None
        if panoptic is not None:
            regions, owners = panoptic.segments - 1, prediction.labels
        paint_map(out, prediction.semantic, shown, regions, MAP_OPACITY if opacity is None else opacity, scale.line)
        if not prediction.hide_labels:
            label_regions(labels, regions, prediction.classes, shown, owners)
    if len(prediction) and panoptic is None:  # segments fill the image; their boxes would add nothing
        _draw_instances(out, prediction, labels)
    labels.paint(out)
    return out


def _draw_instances(out: np.ndarray, prediction: "Prediction", labels: Labels) -> None:
    """Draw masks and boxes on an image, in place, and add their labels."""
    crowd, scale = labels.texts(prediction)[0] is None, labels.scale
    colors = [class_color(int(label)) for label in prediction.labels]
    order = np.argsort(prediction.scores, kind="stable")  # the highest score on top
    if prediction.masks is not None:
        outlines, fills = colors, colors if crowd else _shades(prediction, colors)
        if crowd and len(np.unique(prediction.labels)) == 1:
            outlines = fills = [class_color(int(i)) for i in spread(prediction.boxes, len(PALETTE_RGB))]
        default = CROWD_OPACITY if crowd else MASK_OPACITY
        opacity = default if prediction.opacity is None else prediction.opacity
        paint_masks(out, prediction.masks, order, outlines, fills, opacity, scale.outline)
    if not crowd or prediction.masks is None:  # with a legend, only masks are drawn
        # the masks already show the objects
        line = scale.line if prediction.masks is None else max(1, scale.line // 2)
        paint_boxes(out, prediction.boxes, order, colors, line)
    if not prediction.hide_labels:
        labels.add_boxes(prediction)


def _shades(prediction: "Prediction", colors: Sequence[Color]) -> list[Color]:
    """Return a shade of the color of each object that differs from those of near objects of its class."""
    shades = np.zeros(len(prediction), int)
    for label in np.unique(prediction.labels):
        own = prediction.labels == label
        shades[own] = spread(prediction.boxes[own], len(SHADES))
    return [shade(color, index) for color, index in zip(colors, shades.tolist(), strict=True)]


def draw_areas(
    image: np.ndarray, areas: "Prediction", color: Color, title: tuple[str, Sequence[str], Color], filled: bool = True
) -> np.ndarray:
    """Return a copy of an image with areas in one color, each with its score beside it, and a title.

    A label covers neither an area nor another label, and is omitted where there is no such position.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        areas: the masks, boxes and scores, in the order in which they are labeled.
        color: color of the areas.
        title: text, values of which the first that fits follows it, and color of the title.
        filled: fill the areas; otherwise only their outlines are drawn.
    """
    out = image.copy()
    labels = Labels(out.shape[0], out.shape[1], Scale.of(areas, areas.line_width))
    labels.add_title(*title)
    if len(areas):
        count, opacity = len(areas), MASK_OPACITY if areas.opacity is None else areas.opacity
        colors = [color] * count
        fills = colors if filled else None
        paint_masks(out, areas.masks, range(count), colors, fills, opacity, 1.5 * labels.scale.outline)
        labels.add_areas(areas, color)
    if not areas.hide_labels:
        labels.paint(out)
    return out
