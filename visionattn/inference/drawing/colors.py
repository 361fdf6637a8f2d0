"""Colors of classes and instances, as (blue, green, red)."""

import colorsys

import numpy as np

__all__ = ["PALETTE_RGB", "Color", "class_color", "ink", "map_colors", "shade", "spread"]

Color = tuple[int, int, int]

PALETTE_RGB = (
    (224, 40, 30),
    (40, 150, 255),
    (250, 166, 0),
    (0, 130, 90),
    (128, 64, 240),
    (60, 240, 250),
    (255, 140, 190),
    (212, 248, 128),
    (220, 10, 150),
    (10, 220, 150),
    (255, 150, 115),
    (150, 115, 185),
)
"""Colors of the first classes. They differ in lightness where they differ in little else for people with a color vision
deficiency: with simulated deuteranopia or protanopia (Machado et al. 2009), any two of the first eight have a CIEDE2000
difference of at least 12, and any two of all at least 9."""
SHADES = ((0, 0.0), (0, 0.45), (255, 0.45))
"""Value towards which a shade of a color is mixed, and its fraction: the color itself, darker, and lighter."""


def class_color(index: int) -> Color:
    """Return the color of a class, the same in every image."""
    if index < len(PALETTE_RGB):
        red, green, blue = PALETTE_RGB[index]
    else:  # multiples of the golden ratio give hues that never repeat
        step = index - len(PALETTE_RGB)
        hue = step * 0.6180339887 % 1
        rgb = colorsys.hsv_to_rgb(hue, (0.85, 0.5, 0.95)[step % 3], (0.72, 1.0, 0.55)[step % 3])
        red, green, blue = (round(255 * value) for value in rgb)
    return blue, green, red


def map_colors(classes: tuple[str, ...], colors: tuple[tuple[int, int, int], ...] | None = None) -> dict[int, Color]:
    """Return the color (blue, green, red) of each class index that is drawn; background classes are not.

    Args:
        classes: class names by label.
        colors: RGB color of each class; None uses `class_color`.
    """
    shown = [value for value, name in enumerate(classes) if name.lower() not in ("background", "authentic")]
    return {value: class_color(value) if colors is None else tuple(colors[value])[::-1] for value in shown}


def shade(color: Color, index: int) -> Color:
    """Return the color itself, darker, or lighter: entry `index` of `SHADES`."""
    towards, share = SHADES[index]
    return tuple(round(value + (towards - value) * share) for value in color)


def spread(boxes: np.ndarray, count: int) -> np.ndarray:
    """Return one of `count` numbers for each box ``[N, 4]``: the one whose nearest box so far is the farthest away."""
    # twice the centers: only the order of distances matters
    centers = boxes[:, :2].astype(np.float64) + boxes[:, 2:]
    nearest = np.full((len(centers), count), np.inf)
    chosen = np.zeros(len(centers), dtype=int)
    for index, center in enumerate(centers):
        chosen[index] = nearest[index].argmax()
        distance = np.abs(centers - center).max(axis=1)
        nearest[:, chosen[index]] = np.minimum(nearest[:, chosen[index]], distance)
    return chosen


def ink(color: Color) -> Color:
    """Return black or white, whichever contrasts more with a color (WCAG 2 relative luminance)."""
    linear = [(c / 255) / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)
