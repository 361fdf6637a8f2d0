"""Annotation files cannot reach files outside of the folder, nor use much memory or unexpected exceptions."""

import json
import random
from pathlib import Path

import pytest
from fixtures.annotated import BOXES, labelme_json, photos, voc_xml
from PIL import Image

from visionattn.data.formats.convert import convert
from visionattn.data.formats.detect import detect, read_folder
from visionattn.errors import DataError

ESCAPES = ["../secret.png", "..\\secret.png", "images/../../secret.png", "/{0}/secret.png", "C:\\secret.png", "\0", ""]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["coco", "labelme", "cvat", "voc"])
def test_images_outside_are_not_found(tmp_path: Path, kind: str, name: str):
    Image.new("RGB", (64, 48)).save(tmp_path / "secret.png")
    root, photo = tmp_path / "in", photos()[0]
    photo.save(root)
    name = name.replace("{0}", str(tmp_path).strip("/"))
    photo.name = photo.name if kind == "voc" else name
    if kind == "coco":
        from fixtures.annotated import coco_json

        (root / "train.json").write_text(coco_json([photo]))
    elif kind == "labelme":
        (root / "x.json").write_text(json.dumps(labelme_json(photo, name)))
    elif kind == "cvat":
        from fixtures.annotated import CVAT_HEAD, cvat_image

        text = CVAT_HEAD.format("task") + cvat_image(photo, 0, name.replace("\0", "")) + "</annotations>"
        (root / "annotations.xml").write_text(text)
    else:
        (root / "x.xml").write_text(voc_xml(photo, name.replace("\0", "")))
    with pytest.raises(DataError, match=r"no image with annotations is left|no object has a class"):
        read_folder(root)


@pytest.mark.parametrize("name", ["../escape.jpg", "/tmp/escape.jpg", "..\\..\\escape.jpg", ".hidden", "a/b/c.jpg", ""])
def test_embedded_images_are_written_inside(tmp_path: Path, name: str):
    root, photo = tmp_path / "in", photos()[0]
    root.mkdir()
    (root / "x.json").write_text(json.dumps(labelme_json(photo, name, embedded=True)))
    result = convert(root, tmp_path / "out")
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png") or path.name.startswith(".")]
    assert [path.parent for path in written] == [result.images["train"]]
    assert written[0].suffix == ".jpg"


def test_splits_outside_of_the_folder(tmp_path: Path):
    made = photos()
    BOXES["yolo: Ultralytics"](tmp_path / "other", made)
    BOXES["yolo: Ultralytics"](tmp_path / "in", made)
    for given in ("../other/images/train", str(tmp_path / "other" / "images" / "train")):
        (tmp_path / "in" / "data.yaml").write_text(f"train: {given}\nval: images/val\nnames: [vest, helmet]\n")
        for picture in read_folder(tmp_path / "in").pictures:
            assert picture.path.is_relative_to(tmp_path / "in")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: &a [x]\ntrain: *a\n", "YAML aliases"),
        ("names: !!python/object/apply:os.system [exit]\n", "the 1 names are 0 to 0"),  # the tag is ignored
        ("names: [a, a]\n", "'a' occurs twice"),
        ("names: {0: a, 2: b}\n", "without gaps"),
        ("names: [[a]]\n", "must be a list of class names"),
        ("names: [a\ntrain: x\n", r"data\.yaml:2: is not valid YAML"),
        ("names:\n" + "- [" * 5000, "not valid YAML|must be a list"),
        ("names: []\n", "must be a list of class names"),
        ("names: [a]\nkpt_shape: 3\n", "kpt_shape"),
        ("names: [a]\ntrain: {a: b}\n", "no image with annotations|no object|class"),
    ],
)
def test_yaml(tmp_path: Path, text: str, message: str):
    BOXES["yolo: Ultralytics"](tmp_path, photos())
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"shapes": [], "imagePath": ' + "[" * 100_000,
        '{"shapes": [], "imagePath": 1' + "0" * 5000 + "}",
        '{"shapes": [{"label": "a", "points": [[1, NaN], [2, 3], [4, 5]]}], "imagePath": "train größe 0.png"}',
        '{"shapes": [{"label": "a", "points": {"a": 1}}], "imagePath": "train größe 0.png"}',
        '{"shapes": [{"label": 1, "points": []}], "imagePath": "train größe 0.png"}',
        '{"shapes": [1], "imagePath": "train größe 0.png"}',
        '{"shapes": [{"label": "a", "shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "x"}],'
        ' "imagePath": "train größe 0.png"}',
        '{"shapes": [], "imagePath": "none.png", "imageData": "AAAA"}',
    ],
)
def test_labelme_files(tmp_path: Path, text: str):
    photos()[0].save(tmp_path)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["yolo: Roboflow", "voc: devkit", "labelme: embedded", "cvat: project", "coco: official"]
)
def test_damaged_files_raise_data_errors_only(tmp_path: Path, name: str):
    """Bytes of the annotation files are exchanged, removed and repeated."""
    made = photos(polygons=name.startswith("labelme"))
    BOXES[name](tmp_path, made)
    files = [p for p in sorted(tmp_path.rglob("*")) if p.suffix in (".txt", ".xml", ".json", ".yaml")]
    generator = random.Random(0)
    for _ in range(60):
        file = generator.choice(files)
        original = file.read_bytes()
        data = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            at, kind = generator.randrange(len(data)), generator.randrange(4)
            if kind == 0:
                data[at] = generator.randrange(256)
            elif kind == 1:
                del data[at : at + generator.randint(1, 20)]
            elif kind == 2:
                data[at:at] = generator.choice([b"-1", b"1e999", b"nan", b'"', b"null", b"[", b"99999999999999999999"])
            else:
                data[at:at] = data[at : at + 30]
            data = data or bytearray(b" ")
        file.write_bytes(data)
        try:
            detect(tmp_path)
            dataset = read_folder(tmp_path)
        except DataError:
            pass
        else:
            for picture in dataset.pictures:
                for item in picture.objects:
                    x, y, w, h = item["bbox"]
                    assert w > 0
                    assert h > 0
                    assert min(x, y) >= -0.01
                    assert x + w <= picture.width + 0.01
                    assert y + h <= picture.height + 0.01
        file.write_bytes(original)
