"""Colors of classes."""

import numpy as np

from visionattn.inference.draw import class_color
from visionattn.inference.drawing.colors import PALETTE_RGB, ink


def test_colors_are_stable_and_all_different():
    colors = [class_color(index) for index in range(150)]
    assert colors == [class_color(index) for index in range(150)]
    assert len(set(colors)) == 150
    first = np.array(colors[:20], dtype=float)
    distances = np.linalg.norm(first[:, None] - first[None], axis=2)[np.triu_indices(20, 1)]
    assert distances.min() > 30


def test_text_contrasts_with_its_background():
    """WCAG asks for a ratio of 4.5 for text of this size."""

    def luminance(bgr):
        c = np.array(bgr[::-1]) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for index in range(200):
        a, b = sorted((luminance(class_color(index)), luminance(ink(class_color(index)))))
        assert (b + 0.05) / (a + 0.05) >= 4.5


def test_colors_of_the_first_classes_differ_for_the_color_blind():
    """Distance in CIELAB after the simulation of deuteranopia by Machado et al. (2009)."""
    srgb = np.array(PALETTE_RGB[:8]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    deuteranopia = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    seen = (linear @ np.array(deuteranopia).T).clip(0, 1) @ np.array(xyz).T / [0.95047, 1, 1.08883]
    f = np.where(seen > 216 / 24389, np.cbrt(seen), (24389 / 27 * seen + 16) / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(8, 1)]
    assert distances.min() > 20
