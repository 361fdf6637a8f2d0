"""Near-duplicates, and splits that do not separate them."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.annotated import BOXES, photos
from PIL import Image

from visionattn.data.formats.convert import convert
from visionattn.data.formats.detect import read_folder
from visionattn.data.formats.similar import choose, fingerprints, groups, similar_pairs
from visionattn.data.formats.stats import describe, near_duplicates, sample
from visionattn.errors import DataError


def picture(seed: int) -> Image.Image:
    """A smooth random image, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Eight different images, and for the first four a smaller, brighter and more compressed copy."""
    paths = []
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    for number in range(4):
        copy = picture(number).resize((120, 90)).point(lambda v: min(255, v + 3))
        copy.save(tmp_path / f"copy{number}.jpg", quality=60)
        paths.append(tmp_path / f"copy{number}.jpg")
    return paths


def test_pairs(files: list[Path]):
    prints = fingerprints(files)
    assert similar_pairs(prints) == [(n, n + 8) for n in range(4)]
    assert groups(prints) == [[0, 8], [1, 9], [2, 10], [3, 11], [4], [5], [6], [7]]


def test_flat_images_of_different_brightness_are_different(tmp_path: Path):
    for value in (10, 12, 200):
        Image.new("L", (50, 40), value).save(tmp_path / f"{value}.png")
    assert similar_pairs(fingerprints([tmp_path / f"{v}.png" for v in (10, 12, 200)])) == [(0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_a_split_keeps_copies_together(files: list[Path], seed: int):
    chosen = choose(files, 0.34, seed, "x")
    assert chosen == choose(files, 0.34, seed, "x")
    assert 3 <= len(chosen) <= 4
    for number in range(4):
        assert (number in chosen) == (number + 8 in chosen)


def test_seeds_differ(files: list[Path]):
    assert len({tuple(choose(files, 0.34, seed, "x")) for seed in range(5)}) > 1


def test_too_few_groups(files: list[Path]):
    with pytest.raises(DataError, match="2 training images in 1 group of near-duplicates cannot be split"):
        choose([files[0], files[8]], 0.5, 0, "x")


def voc(root: Path, files: list[Path]) -> None:
    root.mkdir()
    for path in files:
        with Image.open(path) as image:
            image.save(root / path.name)
            width, height = image.size
        box = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>60</ymax></bndbox>"
        (root / f"{path.stem}.xml").write_text(
            f"<annotation><filename>{path.name}</filename><size><width>{width}</width><height>{height}</height></size>"
            f"<object><name>a</name>{box}</object></annotation>"
        )


def test_val_is_drawn_only_if_there_is_none(tmp_path: Path, files: list[Path]):
    voc(tmp_path / "in", files)
    result = convert(tmp_path / "in", tmp_path / "out", val=0.34)
    sizes = {split: len(json.loads(file.read_text())["images"]) for split, file in result.annotations.items()}
    assert sum(sizes.values()) == 12
    assert 3 <= sizes["val"] <= 4
    assert any("drawn for validation (seed 0)" in line for line in result.lines)
    assert near_duplicates(read_folder(tmp_path / "in"))[-1] == "near-duplicates within a split: 4 pairs"
    BOXES["yolo: Ultralytics"](tmp_path / "in2", photos())
    result = convert(tmp_path / "in2", tmp_path / "out2", val=0.9)
    assert len(json.loads(result.annotations["val"].read_text())["images"]) == 2


def test_statistics(tmp_path: Path, files: list[Path]):
    (tmp_path / "in").mkdir()
    voc(tmp_path / "in" / "train", files[:6])
    voc(tmp_path / "in" / "valid", files[6:])
    (tmp_path / "in" / "train" / "4.xml").write_text("<annotation><filename>4.png</filename></annotation>")
    dataset = read_folder(tmp_path / "in")
    lines = describe(dataset)
    assert lines[0].split() == ["train", "val", "images", "median", "side"]
    assert lines[1].split() == ["a", "5", "6", "11", "35", "px"]
    assert lines[2].split() == ["objects", "5", "6"]
    assert lines[3].split() == ["images", "6", "6"]
    assert lines[4].split()[:3] == ["empty", "1", "0"]
    assert "images: width 120 to 160 (median 160), height 90 to 120 (median 120) pixels" in lines
    assert "boxes: width 30, height 40 pixels" in lines
    assert "small (below 32 px): 0, medium: 11, large (from 96 px): 0, of the small ones below 8 px: 0" in lines
    found = near_duplicates(dataset)
    assert found[0] == "near-duplicates in train and val: 4 pairs"
    assert found[1].split() == ["train/0.png", "valid/copy0.jpg"]
    chosen = sample(dataset, 11)
    assert len(chosen) == 11
    assert all(p.objects for p in chosen)
