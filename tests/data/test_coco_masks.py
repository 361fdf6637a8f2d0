import numpy as np
import pytest
from pycocotools import mask as coco_mask

from visionattn.data.coco_masks import rle_runs, segmentation_fault


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (63, 100), (1000, 900)])
def test_runs_of_compressed_text(shape: tuple[int, int], density: float):
    """Against run lengths counted in the mask itself, column by column."""
    mask = np.random.default_rng(0).random(shape) < density
    text = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(np.diff(flat))
    expected = np.diff(np.concatenate([[0], changes, [mask.size]]))
    np.testing.assert_array_equal(rle_runs(text), expected)
    fault = segmentation_fault({"size": list(shape), "counts": text}, (shape[1], shape[0]))
    assert fault is None


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 5, 0, 5, 5]],
        [[0.5, 0, 5, 0, 5, 5], [1, 1, 2, 1, 2, 2, 1, 2]],
        {"size": [3, 4], "counts": [5, 3, 4]},
        {"size": [3, 4], "counts": [12]},
    ],
)
def test_sound(segmentation):
    assert segmentation_fault(segmentation, (4, 3)) is None


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ([[0, 0, 5, 5]], "polygon of 4 numbers"),
        ([[0, 0, 5, 5, 1, 2, 3]], "polygon of 7 numbers"),
        ([0, 0, 5, 0, 5, 5], "not a list of polygons"),
        ([[0, 0, 5, 0, 5, float("nan")]], "not finite"),
        ([[0, 0, 5, 0, 5, float("inf")]], "not finite"),
        ([[0, 0, 5, 0, 5, "5"]], "not a finite number"),
        ("text", "neither"),
        ({"counts": [12]}, "neither"),
        ({"size": [4, 3], "counts": [12]}, "size"),
        ({"size": [3, 4], "counts": [5, 3]}, "add up"),
        ({"size": [3, 4], "counts": [15, -3]}, "add up"),
        ({"size": [3, 4], "counts": [5, 3, 4.0]}, "cannot be read"),
        ({"size": [3, 4], "counts": 12}, "cannot be read"),
        ({"size": [3, 4], "counts": ""}, "cannot be read"),
        ({"size": [3, 4], "counts": "é"}, "cannot be read"),
        ({"size": [3, 4], "counts": "oooooooooo"}, "cannot be read"),
        ({"size": [3, 4], "counts": "5"}, "add up"),
        ({"size": [3, 4], "counts": [10**30]}, "cannot be read"),
    ],
)
def test_faults(segmentation, fault: str):
    assert fault in segmentation_fault(segmentation, (4, 3))
