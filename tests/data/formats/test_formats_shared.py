"""Files of other tools in the development data, compared with a second computation from their text."""

import json
import re
from pathlib import Path

import pytest
from fixtures.annotated import read_back

from visionattn.data.coco import check_coco
from visionattn.data.formats.convert import convert
from visionattn.io.json import read_json


def test_roboflow(shared_dir: Path, tmp_path: Path):
    folder = shared_dir / "data" / "formats" / "yolo_cone"
    result = convert(folder, tmp_path / "out")
    found = read_back(result.annotations)
    labels = sorted((folder / "valid" / "labels").glob("*.txt"))
    assert found.keys() == {("val", path.stem) for path in labels}
    for path in labels:
        expected = []
        for line in path.read_text().split("\n"):
            number, x, y, w, h = map(float, line.split())
            box = [640 * (x - w / 2), 640 * (y - h / 2), 640 * w, 640 * h]
            expected.append((["cone", "cube"][int(number)], pytest.approx(box, abs=1e-9)))
        assert found["val", path.stem] == sorted(expected, key=lambda pair: (pair[0], pair[1].expected))
    assert check_coco(result.annotations["val"], result.images["val"]).annotations == 14


def test_embedded_image(shared_dir: Path, tmp_path: Path):
    folder = shared_dir / "data" / "formats" / "labelme_embedded"
    result = convert(folder, tmp_path / "out")
    check_coco(result.annotations["train"], result.images["train"])
    shapes = read_json(next(folder.glob("*.json")))["shapes"]
    content = read_json(result.annotations["train"])
    names = {c["id"]: c["name"] for c in content["categories"]}
    for shape, annotation in zip(shapes, content["annotations"], strict=True):
        xs, ys = zip(*shape["points"], strict=True)
        assert names[annotation["category_id"]] == shape["label"]
        assert annotation["bbox"] == [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        assert annotation["segmentation"] == [[v for point in shape["points"] for v in point]]
    assert (result.images["train"] / "20180928115506.jpg").is_file()


def test_cvat(shared_dir: Path, tmp_path: Path):
    folder = shared_dir / "data" / "formats" / "cvat_fixture"
    project = read_back(convert(folder / "for_images" / "export_project", tmp_path / "1").annotations)
    one = {"img0": [("label1", [0.0, 2.0, 4.0, 2.0])], "img1": [("label1", [1.0, 2.0, 5.0, 3.0])]}
    assert project == {(split, stem): boxes for split in ("train", "val", "test") for stem, boxes in one.items()}
    task = convert(folder / "for_images" / "export_task", tmp_path / "2")
    assert read_back(task.annotations) == {("train", "img0"): one["img0"], ("train", "img1"): []}
    assert any(line.startswith("objects without a class, dropped: 1") for line in task.lines)
    text = (folder / "for_images" / "export_project" / "annotations.xml").read_text()
    report = (tmp_path / "1" / "report.txt").read_text()
    for shape in ("polyline", "points"):
        lines = [number for number, line in enumerate(text.split("\n"), 1) if f"<{shape} " in line]
        assert (
            f"{shape} shapes, not read: {len(lines)}\n" + "".join(f"  annotations.xml:{n}\n" for n in lines) in report
        )
    video = read_back(convert(folder / "for_video", tmp_path / "3").annotations)
    assert video[("train", "frame_000010")] == [("II", [3.0, 4.0, 7.0, 1.0])]
    assert video[("train", "frame_000013")] == video[("train", "frame_000016")] == []  # outside="1"


def test_voc(shared_dir: Path, tmp_path: Path):
    """The COCO files beside the XML files were converted by another program."""
    folder = shared_dir / "data" / "bccd"
    result = convert(folder, tmp_path / "out", kind="voc")
    other = read_back({split: folder / f"instances_{split}.json" for split in ("train", "val")})
    assert read_back(result.annotations) == other
    total = sum(len(re.findall("<object>", path.read_text())) for path in folder.rglob("*.xml"))
    assert sum(map(len, other.values())) == total
    marked = sum(len(re.findall("<truncated>1<", path.read_text())) for path in folder.rglob("*.xml"))
    assert any(line.startswith(f"objects marked truncated, kept: {marked}, ") for line in result.lines)


@pytest.mark.parametrize("name", ["nuclei", "raccoon"])
def test_coco(shared_dir: Path, tmp_path: Path, name: str):
    folder = shared_dir / "data" / name
    result = convert(folder, tmp_path / "out")
    for split, file in result.annotations.items():
        made, given = json.loads(file.read_text()), read_json(folder / f"instances_{split}.json")
        for key in ("bbox", "category_id", "segmentation"):
            assert [a[key] for a in made["annotations"]] == [a.get(key, []) for a in given["annotations"]]
