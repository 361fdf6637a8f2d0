"""A model that finds coloured rectangles, so that tests know what must be found where."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes

COLORS = {"red": (0, 0, 255), "blue": (255, 0, 0)}


@dataclass
class RectangleModel:
    """Finds the connected areas of pure red and pure blue, as the real `LoadedModel` gives its results.

    The score is higher the smaller the area, so that fragments outscore the whole.
    """

    task: str = "detection"
    classes: tuple[str, ...] = ("red", "blue")
    cfg: Any = field(default_factory=dict)
    with_masks: bool = False
    batches: list[list[tuple[int, ...]]] = field(default_factory=list)

    def predict(self, images: list[np.ndarray], logits: bool = False) -> list[dict[str, Any]]:
        import cv2

        assert all(image.dtype == np.uint8 and image.flags.c_contiguous for image in images)
        self.batches.append([image.shape for image in images])
        results = []
        for image in images:
            masks, labels = [], []
            semantic = np.full(image.shape[:2], 255, np.int64)
            for label, color in enumerate(COLORS.values()):
                area = (image == np.array(color)).all(axis=2)
                semantic[area] = label
                count, parts = cv2.connectedComponents(area.astype(np.uint8), connectivity=4)
                masks += [parts == part for part in range(1, count)]
                labels += [label] * (count - 1)
            dense = np.array(masks, dtype=bool).reshape(-1, *image.shape[:2])
            boxes = masks_to_boxes(torch.from_numpy(dense)).numpy() if len(dense) else np.zeros((0, 4), np.float32)
            boxes[:, 2:] += len(dense) > 0  # it gives the last pixel
            results.append(
                {
                    "boxes": boxes if self.task != "semantic" else np.zeros((0, 4), np.float32),
                    "scores": (1 / (1 + dense.sum(axis=(1, 2)) / 10000)).astype(np.float32)
                    if self.task != "semantic"
                    else np.zeros(0, np.float32),
                    "labels": np.array(labels if self.task != "semantic" else [], dtype=np.int64),
                    "masks": dense if self.with_masks else None,
                    "semantic": semantic if self.task == "semantic" else None,
                }
            )
        if logits:
            for image, result in zip(images, results, strict=True):
                result["logits"] = self.logits(image)
        return results

    def logits(self, image: np.ndarray) -> np.ndarray:
        """For each class how near the mean colour of the 9 by 9 pixels around is, and for none how near gray is."""
        field = torch.nn.functional.pad(torch.from_numpy(image).permute(2, 0, 1)[None].float(), (4, 4, 4, 4))
        mean = torch.nn.functional.avg_pool2d(field, 9, 1)[0]
        colors = torch.tensor([*COLORS.values(), (128, 128, 128)]).float()
        return -(mean - colors[:, :, None, None]).norm(dim=1).numpy() / 16


@pytest.fixture
def rectangle_model() -> RectangleModel:
    return RectangleModel()


@pytest.fixture
def make_model():
    return RectangleModel


def paint(height: int, width: int, *rectangles: tuple[str, int, int, int, int]) -> np.ndarray:
    """A gray BGR picture with rectangles (colour, x0, y0, x1, y1)."""
    image = np.full((height, width, 3), 128, np.uint8)
    for color, x0, y0, x1, y1 in rectangles:
        image[y0:y1, x0:x1] = COLORS[color]
    return image


@pytest.fixture
def painted():
    return paint


@pytest.fixture
def save_picture():
    """Write a BGR array as an image file, losslessly where the format can."""

    def save(path: Path, image: np.ndarray, **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(path, **options)
        return path

    return save
