"""Fixtures for all tests, including small models trained for a few seconds; the markers `fast` and `slow`."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fixtures.paths import REPO

pytest_plugins = [
    "fixtures.archives", "fixtures.fake_gpu", "fixtures.keyed", "fixtures.processes", "fixtures.rectangles",
    "fixtures.server", "fixtures.slow", "fixtures.tiny",
]  # fmt: skip
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its check for a new version needs the network
SMALL = REPO / "tests/small"
if all(importlib.util.find_spec(name) for name in ("mmengine", "mmdet", "mmseg")):
    import visionattn.openmmlab  # noqa: F401  adds the jobs, and the operators without which mmseg cannot be imported


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of development data next to the checkout; skips the test if it does not exist."""
    path = Path(os.environ.get("VISIONATTN_SHARED", REPO.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"needs the development data folder, which is not at {path}; set VISIONATTN_SHARED")
    return path


def make_scene(height: int, width: int, seed: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw red boxes and blue ellipses of 14 to 40 pixels on a noisy background, at most one per 48 x 48 cell.

    Some objects are cut off by the image border.

    Returns:
        The BGR uint8 image ``[height, width, 3]``, and the class index and boolean mask of each object.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    ground = 100 + 25 * np.sin(rows / 37 + seed) * np.cos(columns / 53)
    image = ground[..., None] + rng.normal(0, 12, (height, width, 3))
    objects = []
    for y in range(-24, height + 24, 48):
        for x in range(-24, width + 24, 48):
            if rng.random() < 0.25:
                continue
            h, w = rng.uniform(14, 40, 2)
            cy, cx = y + 24 + rng.uniform(-4, 4), x + 24 + rng.uniform(-4, 4)
            label = int(rng.integers(2))
            if label == 0:
                mask = (abs(rows - cy) < h / 2) & (abs(columns - cx) < w / 2)
            else:
                mask = ((rows - cy) / h * 2) ** 2 + ((columns - cx) / w * 2) ** 2 < 1
            if mask.sum() >= 20:
                image[mask] += [(-60, -40, 80), (90, -20, -60)][label]
                objects.append((label, mask))
    return image.clip(0, 255).astype(np.uint8), objects


def write_scenes(folder: Path, count: int, size: int) -> Path:
    """Write scenes as ``images/*.png``, semantic maps as ``maps/*.png``, and COCO ``train.json`` and ``val.json``."""
    import cv2
    from pycocotools import mask as coco_mask

    (folder / "images").mkdir(parents=True)
    (folder / "maps").mkdir()
    for split, start in (("train", 0), ("val", count)):
        images, annotations = [], []
        for number in range(start, start + count):
            image, objects = make_scene(size, size, number)
            semantic = np.full((size, size), 2, np.uint8)
            for label, mask in objects:
                semantic[mask] = label
                code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0,
                     "area": int(mask.sum()), "bbox": coco_mask.toBbox(code).tolist(),
                     "segmentation": {"size": [size, size], "counts": code["counts"].decode()}}
                )  # fmt: skip
            cv2.imwrite(str(folder / "images" / f"{number:03d}.png"), image)
            cv2.imwrite(str(folder / "maps" / f"{number:03d}.png"), semantic)
            images.append({"id": number, "file_name": f"{number:03d}.png", "width": size, "height": size})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def scene() -> Callable[..., tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
    """`make_scene` as a fixture, because test modules cannot import from a conftest."""
    return make_scene


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 96 x 96 scenes; see `write_scenes`."""
    pytest.importorskip("pycocotools")
    return write_scenes(tmp_path_factory.mktemp("shapes") / "data", 24, 96)


def train_small(name: str, options: dict[str, str], folder: Path) -> Path:
    """Train the config ``small/<name>.py`` and return its work directory."""
    import torch

    from visionattn.engine.config.load import load_config
    from visionattn.engine.train.train import train

    torch.set_num_threads(1)
    config = load_config(SMALL / f"{name}.py", options)
    train(config, work_dir=folder / name)
    return folder / name


@pytest.fixture(scope="session")
def mask_rcnn_run(tmp_path_factory: pytest.TempPathFactory, shapes_dir: Path) -> Path:
    """The work directory of a Mask R-CNN trained on `shapes_dir`."""
    pytest.importorskip("mmdet")
    return train_small("mask_rcnn", {"custom_data.root": str(shapes_dir)}, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def segmentor_run(tmp_path_factory: pytest.TempPathFactory, shapes_dir: Path) -> Path:
    """The work directory of a segmentor trained on `shapes_dir`, with classes for both objects and the background."""
    pytest.importorskip("mmseg")
    loaders = ("train_dataloader", "test_dataloader")
    options = {f"{loader}.dataset.data_root": str(shapes_dir) for loader in loaders}
    return train_small("segmentor", options, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def pillars() -> ModuleType:
    """The module ``small/pillars.py``: a small LiDAR detector and synthetic scans."""
    pytest.importorskip("mmdet")
    spec = importlib.util.spec_from_file_location("pillars", SMALL / "pillars.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def scans_dir(tmp_path_factory: pytest.TempPathFactory, pillars: ModuleType) -> Path:
    """Synthetic scans with box annotations, in ``train`` and ``val``."""
    return pillars.write_scans(tmp_path_factory.mktemp("scans") / "data")


@pytest.fixture(scope="session")
def pillars_run(tmp_path_factory: pytest.TempPathFactory, pillars: ModuleType, scans_dir: Path) -> Path:
    """The work directory of a LiDAR detector trained on `scans_dir`."""
    import torch

    from visionattn.engine.config.load import load_config
    from visionattn.engine.train.train import train

    folder = tmp_path_factory.mktemp("runs")
    (folder / "pillars.py").write_text(pillars.config_text(scans_dir))
    torch.set_num_threads(1)
    train(load_config(folder / "pillars.py"), work_dir=folder / "run")
    return folder / "run"
