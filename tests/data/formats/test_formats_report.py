"""Everything that is dropped or changed is counted, with its file and line; malformed files are errors."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.annotated import BOXES, photos, read_back, voc_xml, yolo_lines
from PIL import Image

from visionattn.data.formats.convert import convert
from visionattn.data.formats.detect import read_folder
from visionattn.data.formats.finish import Dataset
from visionattn.errors import DataError


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    BOXES["yolo: Ultralytics"](tmp_path / "in", photos())
    return tmp_path / "in"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    BOXES["voc: Roboflow"](tmp_path / "voc", photos(whole=True))
    return tmp_path / "voc"


def places(dataset: Dataset, words: str) -> list[str]:
    """Return the places of the one kind of change whose text contains these words."""
    found = [where for what, where in dataset.report.found.items() if words in what]
    assert len(found) == 1, dataset.report.lines()
    return found[0]


def boxes_of(dataset: Dataset, stem: str) -> list[list[float]]:
    return next([o["bbox"] for o in p.objects] for p in dataset.pictures if p.path.stem == stem)


LABEL = "labels/train/train größe 0.txt"  # image of 64 x 48 pixels


def test_clean_data_has_nothing_to_report_but_the_empty_image(yolo: Path, voc: Path):
    for folder in (yolo, voc):
        assert [line.split(":")[0] for line in read_folder(folder).report.lines()] == ["images without objects, kept"]


@pytest.mark.parametrize(
    ("line", "words", "left"),
    [
        ("0 0.95 0.5 0.2 0.5", "partly outside of their image, clipped", [54.4, 12.0, 9.6, 24.0]),
        ("1 1.5 0.5 0.2 0.5", "outside of their image, dropped", None),
        ("1 0.5 0.5 0 0.5", "boxes without an area, dropped", None),
        ("1 0.5 0.5 nan 0.5", "not finite, dropped", None),
        ("0 0.1 0.1 0.5 0.1 0.9 0.1", "polygons without an area, dropped", None),
        ("0 0.5 0.5 1.5 0.1 0.5 0.9", "partly outside of their image, clipped", [32.0, 14.4, 32.0, 28.8]),
    ],
)
def test_coordinates(yolo: Path, line: str, words: str, left: list[float] | None):
    (yolo / LABEL).write_text(f"0 0.5 0.5 0.5 0.5\n\n{line}\n")
    dataset = read_folder(yolo)
    assert [place.split(": ")[0] for place in places(dataset, words)] == [f"{LABEL}:3"]
    found = boxes_of(dataset, "train größe 0")
    assert found[0] == [16.0, 12.0, 32.0, 24.0]
    assert found[1:] == ([] if left is None else [pytest.approx(left)])


def test_a_clipped_polygon_stays_inside(yolo: Path):
    (yolo / LABEL).write_text("0 -0.5 0.5 0.5 -0.5 1.5 0.5 0.5 1.5\n")  # a diamond around the image touches its corners
    item = next(p for p in read_folder(yolo).pictures if p.path.stem == "train größe 0").objects[0]
    assert item["bbox"] == [0, 0, 64, 48]
    assert item["area"] == pytest.approx(64 * 48)
    xs, ys = item["segmentation"][0][::2], item["segmentation"][0][1::2]
    assert (min(xs), max(xs), min(ys), max(ys)) == (0, 64, 0, 48)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r":2: the class 2 has no name; the 2 names are 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", r":2: the class -1 has no name"),
        ("0.5 0.5 0.5 0.1 0.1", r":2: the class 0.5 has no name"),
        ("nan 0.5 0.5 0.1 0.1", r":2: the class nan has no name"),
        ("0 0.5 0.5 0.1", r":2: has 3 values after the class; a box has 4"),
        ("0 0.5 0.5 0.1 0.1 0.9", r":2: has 5 values after the class"),
        ("vest 0.5 0.5 0.1 0.1", r":2: 'vest 0.5 0.5 0.1 0.1' is not a line of numbers"),
        ("0 320 240 64 48", r":2: '0 320 240 64 48' is in pixels"),
    ],
)
def test_malformed_lines(yolo: Path, line: str, message: str):
    (yolo / LABEL).write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_folder(yolo)


def test_keypoints_are_counted(yolo: Path):
    (yolo / "data.yaml").write_text((yolo / "data.yaml").read_text() + "kpt_shape: [2, 3]\n")
    (yolo / LABEL).write_text("0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 1\n")
    dataset = read_folder(yolo)
    assert places(dataset, "keypoints are not read") == [f"{LABEL}:1"]
    assert boxes_of(dataset, "train größe 0") == [[16.0, 12.0, 32.0, 24.0]]


def test_images_and_labels_without_each_other(yolo: Path, voc: Path):
    (yolo / LABEL).unlink()
    (yolo / "labels" / "val" / "nobody.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    dataset = read_folder(yolo)
    assert places(dataset, "images without a label file") == ["images/train/train größe 0.png"]
    assert places(dataset, "label files without an image") == ["labels/val/nobody.txt"]
    assert len(dataset.pictures) == 5  # without objects
    (voc / "train" / "train größe 0.xml").unlink()
    (voc / "valid" / "nobody.xml").write_text(voc_xml(photos()[0], "nobody.jpg"))
    dataset = read_folder(voc)
    assert places(dataset, "images without an annotation, not used") == ["train/train größe 0.png"]
    assert places(dataset, "annotations without an image") == ["valid/nobody.xml"]
    assert len(dataset.pictures) == 4


def test_sizes_that_contradict_the_image(voc: Path):
    path = voc / "train" / "train größe 0.xml"
    path.write_text(path.read_text().replace("<width>64<", "<width>128<"))
    dataset = read_folder(voc)
    (place,) = places(dataset, "size contradicts the annotation, left out with their objects")
    assert place == "train/train größe 0.xml: says 128 x 48, the image is 64 x 48"
    assert len(dataset.pictures) == 4
    path.write_text(path.read_text().replace("<width>128<", "<width>0<"))
    assert places(read_folder(voc), "annotations without a size") == ["train/train größe 0.xml"]


def test_unreadable_images(yolo: Path):
    path = yolo / "images" / "train" / "train größe 0.png"
    path.write_bytes(path.read_bytes()[:200])
    dataset = read_folder(yolo)
    assert "is truncated" in places(dataset, "images that cannot be read, left out")[0]
    assert len(dataset.pictures) == 4


def exif(photo_file: Path, orientation: int) -> None:
    with Image.open(photo_file) as image:
        image.load()
    tags = image.getexif()
    tags[0x0112] = orientation
    image.save(photo_file, exif=tags)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("name", ["voc: Roboflow", "cvat: tasks", "coco: Roboflow", "labelme: beside"])
def test_objects_of_the_stored_pixels_are_turned(tmp_path: Path, name: str, orientation: int):
    """The color of the pixels inside a box shows whether it is still at its place in the upright image."""
    made = photos(whole=True)
    for photo in made:
        photo.pixels[:] = 0
        photo.shapes = photo.shapes[:1]
        for shape in photo.shapes:
            x, y, w, h = map(int, shape.box)
            photo.pixels[y : y + h, x : x + w] = 255
    BOXES[name](tmp_path, made)
    for file in tmp_path.rglob("*.png"):
        exif(file, orientation)
    dataset = read_folder(tmp_path)
    assert len(places(dataset, "turned with the EXIF orientation")) == 5
    for picture in dataset.pictures:
        from visionattn.io.images import read_image

        upright = read_image(picture.path)[..., 0]
        assert upright.shape == (picture.height, picture.width)
        expected = np.zeros_like(upright)
        for item in picture.objects:
            x, y, w, h = map(int, item["bbox"])
            expected[y : y + h, x : x + w] = 255
        assert np.array_equal(upright, expected)


def test_yolo_refers_to_the_upright_image(yolo: Path):
    exif(yolo / "images" / "train" / "train größe 0.png", 6)  # 64 x 48 becomes 48 x 64
    (yolo / LABEL).write_text("0 0.5 0.5 0.5 0.25\n")
    dataset = read_folder(yolo)
    assert places(dataset, "with an EXIF orientation") == [LABEL]
    assert boxes_of(dataset, "train größe 0") == [[12.0, 24.0, 24.0, 16.0]]


def test_names_that_differ_only_in_suffix(yolo: Path):
    Image.new("RGB", (64, 48)).save(yolo / "images" / "train" / "train größe 0.jpg")
    dataset = read_folder(yolo)
    assert "train größe 0.png" in places(dataset, "share a label file")[0]
    assert places(dataset, "image names that differ only in") == ["images/train: train größe 0"]


def test_duplicates_of_objects_and_images(tmp_path: Path):
    made = photos()
    BOXES["yolo: CVAT 1.1"](tmp_path, made)
    with open(tmp_path / "train.txt", "a") as file:
        file.write(f"data/obj_train_data/{made[0].name}\ndata/obj_train_data/none.png\n")
    with open(tmp_path / "valid.txt", "a") as file:
        file.write(f"data/obj_train_data/{made[1].name}\n")
    label = tmp_path / "obj_train_data" / f"{made[0].stem}.txt"
    label.write_text("0 0.5 0.5 0.25 0.25\n" * 3)
    dataset = read_folder(tmp_path)
    assert len(places(dataset, "annotated twice, of which the first was used")) == 1
    assert places(dataset, "in several splits") == [f"obj_train_data/{made[1].name}"]
    assert places(dataset, "in lists that do not exist") == ["train.txt:5: data/obj_train_data/none.png"]
    assert len(places(dataset, "objects that occur twice")) == 2


def test_windows_paths_and_byte_order_marks(tmp_path: Path):
    BOXES["yolo: Windows"](tmp_path, photos())
    dataset = read_folder(tmp_path)
    assert len(places(dataset, "Windows paths")) == 5
    assert len(places(dataset, "byte order mark")) == 3 + 5


def test_voc_extras(voc: Path):
    path = voc / "train" / "train größe 0.xml"
    path.write_text(
        """<annotation><filename>other.png</filename><size><width>64</width><height>48</height></size>
<object><name> vest </name><difficult>1</difficult>
  <bndbox><xmin>20</xmin><ymin>5</ymin><xmax>10</xmax><ymax>15</ymax></bndbox>
  <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>
<object><name>helmet</name></object>
<object><name></name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>
</annotation>"""
    )
    dataset = read_folder(voc)
    where = "train/train größe 0.xml"
    assert places(dataset, "file names in annotations that differ") == [f"{where}: other.png, train größe 0.png"]
    assert places(dataset, "surrounding spaces") == [f"{where}:2: ' vest '"]
    assert places(dataset, "marked difficult, kept") == [f"{where}:2"]
    assert places(dataset, "exchanged corners") == [f"{where}:2"]
    assert places(dataset, "parts of objects") == [f"{where}:2"]
    assert places(dataset, "without a box, dropped") == [f"{where}:5"]
    assert places(dataset, "without a class, dropped") == [f"{where}:6"]
    assert boxes_of(dataset, "train größe 0") == [[10.0, 5.0, 10.0, 10.0]]
    path.write_text(path.read_text().replace("<xmin>20<", "<xmin>twenty<"))
    with pytest.raises(DataError, match=r"größe 0\.xml:3: a box needs the numbers xmin"):
        read_folder(voc)


def png(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_labelme_shapes(tmp_path: Path):
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    mask = np.zeros((6, 5), bool)
    mask[1:4, 2:5] = True
    shapes = [
        {"label": "x", "shape_type": "line", "points": [[1, 2], [3, 4]]},
        {"label": "x", "shape_type": "linestrip", "points": [[1, 2], [3, 4], [5, 6]]},
        {"label": "x", "shape_type": "point", "points": [[1, 2]]},
        {"label": "x", "shape_type": "circle", "points": [[50, 40], [60, 40]]},
        {"label": "x", "shape_type": "mask", "points": [[10, 20], [14, 25]], "mask": png(mask)},
        {"label": "y", "shape_type": "polygon", "points": [[0, 0], [10, 0], [0, 10]], "group_id": 7},
        {"label": "y", "shape_type": "polygon", "points": [[20, 0], [30, 0], [20, 10]], "group_id": 7},
        {"label": "z", "shape_type": "polygon", "points": [[20, 0], [30, 0], [20, 10]], "group_id": 7},
        {"label": "y", "shape_type": "polygon", "points": [[0, 0], [10, 0]]},
    ]
    (tmp_path / "a.json").write_text(
        json.dumps({"shapes": shapes, "imagePath": "a.png", "imageData": None, "imageWidth": 50, "imageHeight": 40})
    )
    dataset = read_folder(tmp_path)
    assert places(dataset, "'line'") == ["a.json: shape 1"]
    assert places(dataset, "'linestrip'") == ["a.json: shape 2"]
    assert places(dataset, "'point'") == ["a.json: shape 3"]
    assert places(dataset, "circles, converted") == ["a.json: shape 4"]
    assert places(dataset, "joined to one object") == ["a.json: shape 7"]
    assert places(dataset, "less than 3 points") == ["a.json: shape 9"]
    assert places(dataset, "contradict the image, not used") == ["a.json: says 50 x 40, the image is 100 x 80"]
    circle, masked, joined, single = dataset.pictures[0].objects
    assert circle["bbox"] == pytest.approx([40, 30, 20, 20])
    assert circle["area"] == pytest.approx(np.pi * 100, rel=0.01)
    assert masked["bbox"] == [12, 21, 3, 3]
    assert masked["area"] == 9
    assert joined["bbox"] == [0, 0, 30, 10]
    assert joined["area"] == 100
    assert len(joined["segmentation"]) == 2
    assert single["bbox"] == [20, 0, 10, 10]


CVAT = """<annotations><meta><task><labels><label><name>cat</name></label></labels></task></meta>
<image id="0" name="a.png" width="100" height="80">
<polyline label="cat" points="1,1;2,2"/>
<points label="cat" points="1,1"/>
<ellipse label="cat" cx="5" cy="5" rx="2" ry="2"/>
<tag label="cat"/>
<box label="cat" xtl="10" ytl="20" xbr="30" ybr="60" rotation="90.0"/>
<mask label="cat" rle="2, 3, 3, 1, 1" left="10" top="20" width="5" height="2"/>
<mask label="cat" rle="0, 4" left="99" top="79" width="2" height="2"/>
</image></annotations>"""


def test_cvat_shapes(tmp_path: Path):
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    (tmp_path / "annotations.xml").write_text(CVAT)
    dataset = read_folder(tmp_path)
    for words, line in (("polyline", 3), ("points shapes", 4), ("ellipse", 5), ("tags", 6), ("rotated boxes", 7)):
        assert places(dataset, words) == [f"annotations.xml:{line}"]
    assert places(dataset, "partly outside")[0].startswith("annotations.xml:9")
    rotated, mask, corner = dataset.pictures[0].objects
    assert rotated["bbox"] == pytest.approx([0, 30, 40, 20])  # 20 x 40 around (20, 40), turned
    assert rotated["area"] == pytest.approx(800)
    # rows of 5 pixels: ..xxx and ...x.
    assert mask["bbox"] == [12, 20, 3, 2]
    assert mask["area"] == 4
    assert corner["bbox"] == [99, 79, 1, 1]
    (tmp_path / "annotations.xml").write_text(CVAT.replace("2, 3, 3, 1, 1", "2, 3, 3, 1"))
    with pytest.raises(DataError, match=r"annotations\.xml:8: the runs of a mask have 9 pixels, not 5 x 2"):
        read_folder(tmp_path)


def test_coco_faults(tmp_path: Path):
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    box = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1}
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 100, "height": 80},
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {**box, "id": 1, "bbox": [1, 2, 3, 4], "attributes": {"a": 1}},
            {**box, "id": 2, "bbox": [1, 2, 3, 4], "image_id": 9},
            {**box, "id": 3, "bbox": [1, 2, 3, 4], "category_id": 9},
            {**box, "id": 4, "bbox": ["1", 2, 3, 4]},
            {**box, "id": 5, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3]]},
            {**box, "id": 6, "bbox": [1, 0, 1, 2], "segmentation": {"size": [80, 100], "counts": [80, 2, 7918]}},
        ],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    dataset = read_folder(tmp_path)
    assert places(dataset, "annotations without an image") == ["train.json: image 2: b.png"]
    assert places(dataset, "keys of annotations that are not read (attributes)") == ["train.json"]
    assert places(dataset, "of images that the file does not list") == ["train.json: annotation 2"]
    assert places(dataset, "of categories that the file does not list") == ["train.json: annotation 3"]
    assert places(dataset, "without a usable box") == ["train.json: annotation 4"]
    assert places(dataset, "segmentations that cannot be read")[0].startswith("train.json: annotation 5: ")
    assert [o["bbox"] for o in dataset.pictures[0].objects] == [[1, 2, 3, 4], [1, 2, 3, 4], [1, 0, 1, 2]]
    assert dataset.pictures[0].objects[2]["area"] == 2
    (tmp_path / "more_train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotates the same images as more_train\.json"):
        read_folder(tmp_path)


def test_the_list_is_complete(yolo: Path, tmp_path: Path):
    (yolo / LABEL).write_text("0 0.5 0.5 0 0.5\n" * 30 + "0 0.5 0.5 0.5 0.5\n")
    result = convert(yolo, tmp_path / "out")
    assert (
        "boxes without an area, dropped: 30, such as labels/train/train größe 0.txt:1: [32, 12, 0, 24]" in result.lines
    )
    text = (tmp_path / "out" / "report.txt").read_text()
    for number in range(1, 31):
        assert f"  {LABEL}:{number}: [32, 12, 0, 24]\n" in text


def test_several_formats_need_a_choice(yolo: Path, tmp_path: Path):
    made = photos()
    for photo in made:
        (yolo / f"{photo.stem}.xml").write_text(voc_xml(photo))
    with pytest.raises(DataError, match=r"several formats: yolo .*; voc .*; choose one with `kind`"):
        convert(yolo, tmp_path / "out")
    assert convert(yolo, tmp_path / "out", kind="voc").kind == "voc"
    assert yolo_lines(made[0])


def test_yolo_without_names(yolo: Path, tmp_path: Path):
    (yolo / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"YOLO label files but no class names; add classes\.txt"):
        convert(yolo, tmp_path / "out")


def test_names_are_texts(yolo: Path):
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [no, 007]\n")
    assert [c["name"] for c in read_folder(yolo).categories] == ["no", "007"]


def test_existing_files_are_kept(yolo: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="did not create"):
        convert(yolo, tmp_path / "out")
    with pytest.raises(DataError, match="contains the source"):
        convert(yolo, yolo)
    assert read_back({}) == {}


def test_folders_of_masks_are_no_images(yolo: Path, tmp_path: Path):
    (yolo / "masks").mkdir()
    Image.new("L", (64, 48)).save(yolo / "masks" / "x.png")
    dataset = read_folder(yolo)
    assert places(dataset, "folders of masks") == ["masks"]
    assert "without an annotation" not in dataset.report.text()
    yolo.rename(tmp_path / "masks")  # the whole data set in a folder of this name
    assert len(read_folder(tmp_path, "yolo").pictures) == 5
