"""The code of the tutorials and notebooks runs, with small data and few iterations."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.pages import DOCS, blocks, run_page
from fixtures.paths import REPO
from PIL import Image

pytest.importorskip("mmdet")
cv2 = pytest.importorskip("cv2")


def digits() -> None:
    from visionattn.data.digits import build_digit_scenes

    build_digit_scenes("digits", train=8, test=2, size=128)


def streets() -> None:
    """Images and index masks of three classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for kind in ("images", "masks"):
            Path("streets", kind, split).mkdir(parents=True)
        for number in range(count):
            labels = np.repeat(np.repeat(rng.integers(0, 3, (4, 6), dtype=np.uint8), 24, 0), 16, 1)
            image = rng.normal(60 + 60 * labels[..., None], 10, (*labels.shape, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(f"streets/images/{split}/{number}.jpg")
            Image.fromarray(labels).save(f"streets/masks/{split}/{number}.png")
    Path("streets/classes.json").write_text('["road", "car", "ground"]')


def photos() -> None:
    Path("photos").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 1, (160, 192, 3))
        image = 128 + 40 * cv2.GaussianBlur(noise, (0, 0), 12) * 12 + 3 * noise
        cv2.imwrite(f"photos/{number}.png", image.clip(0, 255).astype(np.uint8))


def scans() -> None:
    from visionattn.heads.lidar.simulate.rays import Lidar
    from visionattn.heads.lidar.simulate.samples import build_lidar_samples

    build_lidar_samples("data/lidar-samples", train=2, val=1, lidar=Lidar(beams=16, azimuths=256))


def squares() -> None:
    from toy_job.test_toy_job import write_images

    write_images(Path("train"), 8, 0)
    write_images(Path("val"), 2, 1)
    Path("toy_job").mkdir()
    shutil.copy(REPO / "tests/toy_job/config.py", "toy_job")


PREPARE: dict[str, Callable[[], None]] = {
    "tutorials/own_boxes.md": digits,
    "tutorials/own_masks.md": streets,
    "tutorials/fine_tune.md": digits,
    "tutorials/forgery.md": photos,
    "tutorials/lidar.md": scans,
    "tutorials/new_job.md": squares,
}
"""What creates the data that a page assumes, in the current folder."""
PAGES = [
    path.relative_to(DOCS).as_posix()
    for folder in ("tutorials", "notebooks")
    for path in sorted((DOCS / folder).glob("*.md"))
]


@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    if "export" in page:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    assert any(block.mode != "parse" for block in blocks(page))
    PREPARE.get(page, lambda: None)()
    run_page(page)
