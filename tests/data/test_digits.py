import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from visionattn.data.coco import check_coco
from visionattn.data.digits import CLASSES, _blend, _render, build_digit_scenes
from visionattn.errors import DataError
from visionattn.io.folders import STAMP


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_digit_scenes(tmp_path_factory.mktemp("samples") / "made", train=24, test=10)


def _load(folder: Path, split: str) -> dict:
    return json.loads((folder / f"instances_{split}.json").read_text())


@pytest.mark.parametrize(("split", "count"), [("train", 24), ("test", 10)])
def test_layout(folder: Path, split: str, count: int):
    summary = check_coco(folder / f"instances_{split}.json", folder / "images" / split, tolerance=0)
    assert summary.images == count
    assert summary.categories == CLASSES == tuple("0123456789")
    assert summary.empty_images == 0
    for record in _load(folder, split)["images"]:
        image = cv2.imread(str(folder / "images" / split / record["file_name"]))
        assert image.shape == (256, 256, 3)


def test_four_to_eight_digits_that_do_not_overlap(folder: Path):
    data = _load(folder, "train")
    for record in data["images"]:
        objects = [a for a in data["annotations"] if a["image_id"] == record["id"]]
        assert 4 <= len(objects) <= 8
        masks = [coco_mask.decode(a["segmentation"]) for a in objects]
        assert np.sum(masks, axis=0).max() == 1


def test_boxes_and_areas_are_those_of_the_masks(folder: Path):
    coco = COCO(str(folder / "instances_test.json"))
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x, y, x + w, y + h)
        assert annotation["area"] == mask.sum()
        assert 16 <= max(w, h) <= 76


def test_digits_stand_out_from_their_surroundings(folder: Path):
    coco = COCO(str(folder / "instances_test.json"))
    contrasts = []
    for annotation in coco.dataset["annotations"]:
        record = coco.imgs[annotation["image_id"]]
        image = cv2.imread(str(folder / "images" / "test" / record["file_name"])).astype(int)
        mask = coco.annToMask(annotation)
        inside = cv2.erode(mask, np.ones((3, 3), np.uint8)).astype(bool)
        ring = cv2.dilate(mask, np.ones((9, 9), np.uint8)) - cv2.dilate(mask, np.ones((5, 5), np.uint8))
        if inside.any() and ring.any():
            contrasts.append(np.abs(image[inside].mean(0) - image[ring.astype(bool)].mean(0)).max())
    assert len(contrasts) > 20
    assert np.median(contrasts) > 60


def test_category_is_the_label_of_the_drawn_digit(folder: Path):
    labels = load_digits().target
    for split in ("train", "test"):
        for annotation in _load(folder, split)["annotations"]:
            assert annotation["category_id"] == labels[annotation["digit_index"]] + 1


def test_masks_look_like_their_digits(folder: Path):
    """A mask correlates with its source digit, both stretched to 16x16, and less with another digit."""
    digits = load_digits().images.astype(np.float32)

    def stretch(picture: np.ndarray, least: float) -> np.ndarray:
        rows, columns = np.nonzero(picture > least)
        picture = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        picture = cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA).ravel()
        return (picture - picture.mean()) / picture.std()

    objects = _load(folder, "train")["annotations"]
    masks = [stretch(coco_mask.decode(a["segmentation"]).astype(np.float32), 0.5) for a in objects]
    sources = [stretch(digits[a["digit_index"]], 6) for a in objects]
    related = np.mean([np.mean(m * s) for m, s in zip(masks, sources, strict=True)])
    unrelated = np.mean([np.mean(m * s) for m, s in zip(masks, sources[1:] + sources[:1], strict=True)])
    assert related > 0.45
    assert unrelated < related - 0.2


def test_train_and_test_share_no_digit_and_no_photograph_half(folder: Path):
    train, test = _load(folder, "train"), _load(folder, "test")
    digits = [{a["digit_index"] for a in data["annotations"]} for data in (train, test)]
    halves = [{(i["photo"], i["half"]) for i in data["images"]} for data in (train, test)]
    assert not digits[0] & digits[1]
    assert not halves[0] & halves[1]
    assert {photo for photo, _ in halves[0]} == {"china.jpg", "flower.jpg"}


def test_the_splits_use_all_digits_and_share_none(tmp_path: Path):
    """With at least 4 digits in an image, so many images need every digit of their part."""
    made = build_digit_scenes(tmp_path / "made", train=360, test=90, size=128)
    used = [{a["digit_index"] for a in _load(made, split)["annotations"]} for split in ("train", "test")]
    assert used == [set(range(1437)), set(range(1437, 1797))]


@pytest.mark.parametrize("extent", [12.0, 24.0, 72.0])
def test_mask_is_where_the_colour_covers_more_than_half(extent: float):
    rng = np.random.default_rng(0)
    for glyph in load_digits().images[:10].astype(np.float32) / 16:
        alpha = _render(glyph, extent, 12.0, 0.1, 0.4)
        image = np.full((100, 100, 3), 30, dtype=np.uint8)
        mask = _blend(rng, image, alpha, 5, 9)
        change = np.abs(image.astype(float) - 30).max(axis=2)
        share = change / change.max() * alpha.max()
        assert mask.any()
        assert share[mask > 0].min() > 0.45
        assert share[mask == 0].max() < 0.55
        assert abs(max(alpha.shape) - extent) <= max(3, 0.1 * extent)


def test_sources_and_plain_photograph(folder: Path):
    text = (folder / "README.txt").read_text()
    for part in ("CC BY 2.0", "danielbuechele", "Optical Recognition of Handwritten Digits", "BSD-3-Clause"):
        assert part in text
    assert cv2.imread(str(folder / "photo.jpg")).shape == (427, 640, 3)


def test_same_arguments_same_bytes_and_another_seed_others(tmp_path: Path, folder: Path):
    again = build_digit_scenes(tmp_path / "again", train=24, test=10)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((folder / p).read_bytes() == (again / p).read_bytes() for p in files)
    other = build_digit_scenes(tmp_path / "other", train=2, test=1, seed=1)
    assert (other / "images/train/000001.jpg").read_bytes() != (folder / "images/train/000001.jpg").read_bytes()


def test_made_once_and_again_when_arguments_change_or_a_file_is_lost(tmp_path: Path):
    made = build_digit_scenes(tmp_path / "a", train=2, test=1, size=128)
    stamp = made / STAMP
    before = stamp.stat().st_ino
    assert build_digit_scenes(tmp_path / "a", train=2, test=1, size=128) == made
    assert stamp.stat().st_ino == before
    (made / "images/train/000002.jpg").unlink()
    build_digit_scenes(tmp_path / "a", train=2, test=1, size=128)
    assert (made / "images/train/000002.jpg").is_file()
    build_digit_scenes(tmp_path / "a", train=1, test=1, size=128)
    assert len(list((made / "images/train").iterdir())) == 1


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    assert build_digit_scenes(train=1, test=1, size=128) == tmp_path / "cache" / "samples"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["samples"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"test": -1}, {"size": 127}, {"seed": -1}, {"train": 1.5}])
def test_arguments_out_of_range(tmp_path: Path, wrong: dict):
    with pytest.raises(DataError, match=next(iter(wrong))):
        build_digit_scenes(tmp_path / "x", **wrong)
    assert not (tmp_path / "x").exists()


def test_a_killed_build_leaves_nothing_in_its_place(tmp_path: Path):
    """SIGKILL while the images of the test split are being drawn."""
    code = (
        "import sys; from visionattn.data.digits import build_digit_scenes\n"
        "build_digit_scenes(sys.argv[1], train=2, test=10**6, size=128)"
    )
    target = tmp_path / "samples"
    with subprocess.Popen([sys.executable, "-c", code, str(target)]) as build:
        while not next(tmp_path.rglob("test/000002.jpg"), None):
            assert build.poll() is None, "the build ended by itself"
            time.sleep(0.02)
        build.kill()
    assert build.returncode == -9
    assert not target.exists()
    leftovers = list(tmp_path.iterdir())
    assert leftovers, "the build was killed before it had begun"
    build_digit_scenes(target, train=2, test=3, size=128)
    assert check_coco(target / "instances_test.json", target / "images" / "test").images == 3
