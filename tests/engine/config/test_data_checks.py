"""What is checked of the data before a run."""

import json
import shutil

import pytest

pytest.importorskip("mmdet")

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.config.data_checks import check_data
from visionattn.engine.config.load import load_config
from visionattn.errors import ConfigError, DataError


@pytest.fixture
def own(tmp_path, coco_dir, make_config):
    """A copy of the data that a test may spoil, and its config."""
    shutil.copytree(coco_dir, tmp_path / "data")
    return tmp_path / "data", make_config(tmp_path / "tiny.py", tmp_path / "data")


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_sound_data(config_file):
    assert [line.split(",")[0] for line in check_data(load_config(config_file))] == ["train: 8 images", "val: 8 images"]


def test_classes_that_are_not_the_categories(own):
    _folder, config_file = own
    for classes, message in (
        ("[red,blue,green]", "has no category 'green', which is a class of the config"),
        ("[rad]", "has no category 'rad', .* did you mean red"),
    ):
        with pytest.raises(DataError, match=message):
            check_data(load_config(config_file, [f"custom_data.classes={classes}"]))


def test_classes_of_the_dataset_class(own):
    """A COCO config pointed at other data: CocoDataset's own 80 classes do not fit."""
    _folder, config_file = own
    config = load_config(config_file)
    del config.train_dataloader.dataset["metainfo"]
    with pytest.raises(DataError, match="the category 'red' is not among"):
        check_data(config)


@pytest.mark.parametrize("kind", ["ADE20KInstanceDataset", "CityscapesDataset"])
def test_kinds_of_coco_data_that_do_not_say_so(own, kind):
    """Their files are COCO's, so they are checked like it."""
    _folder, config_file = own
    config = load_config(config_file)
    config.train_dataloader.dataset["type"] = kind
    assert check_data(config)[0].startswith("train: 8 images")
    del config.train_dataloader.dataset["metainfo"]
    with pytest.raises(DataError, match="the category 'red' is not among"):
        check_data(config)


def test_box_outside_of_its_image(own):
    folder, config_file = own
    edit(folder / "train.json", lambda c: c["annotations"][0].update(bbox=[50, 50, 40, 10]))
    with pytest.raises(DataError, match=r"train\.json"):
        check_data(load_config(config_file))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(b"not an image"), "cannot be opened as an image"),
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "is truncated"),
        (lambda p: p.write_bytes(b""), "cannot be opened as an image"),
    ],
)
def test_spoilt_image(own, spoil, message):
    folder, config_file = own
    spoil(folder / "images" / "003.png")
    with pytest.raises(DataError, match=rf"003\.png: {message}"):
        check_data(load_config(config_file))


def test_cut_jpeg(own):
    cv2 = pytest.importorskip("cv2")
    folder, config_file = own
    image = cv2.imread(str(folder / "images" / "003.png"))
    cv2.imwrite(str(folder / "images" / "003.jpg"), image)
    edit(folder / "train.json", lambda c: c["images"][3].update(file_name="003.jpg"))
    check_data(load_config(config_file))
    file = folder / "images" / "003.jpg"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"003\.jpg: is truncated"):
        check_data(load_config(config_file))


def test_size_that_is_not_the_images(own):
    folder, config_file = own
    edit(folder / "val.json", lambda c: c["images"][1].update(width=80))
    with pytest.raises(DataError, match=r"009\.png: is 64 x 64 pixels, but its annotation says 80 x 64"):
        check_data(load_config(config_file))


def test_some_classes_of_a_file(own):
    """Objects of other classes are counted as unused, and class names are strings."""
    _folder, config_file = own
    assert all(
        "of blue not used" in line for line in check_data(load_config(config_file, ["custom_data.classes=[red]"]))
    )
    with pytest.raises(ConfigError, match=r"train_dataloader.*classes: the name 'red' occurs twice"):
        check_data(load_config(config_file, ["custom_data.classes=[red,red]"]))
    config = load_config(config_file)
    config.train_dataloader.dataset.metainfo.classes = (0, 1)
    with pytest.raises(ConfigError, match=r"classes: names must be strings, got 0; write '0'"):
        check_data(config)


def test_classes_that_are_numbers(own):
    """Numbers of the command line are the names of the categories, which mmdet compares as strings."""
    folder, config_file = own
    for split in ("train", "val"):
        edit(folder / f"{split}.json", lambda c: [r.update(name=str(n)) for n, r in enumerate(c["categories"])])
    config = load_config(config_file, ["custom_data.classes=[0,1]"])
    assert config.train_dataloader.dataset.metainfo.classes == ("0", "1")


def test_evaluator_of_other_data(own):
    folder, config_file = own
    config = load_config(config_file)
    config.val_evaluator.ann_file = str(folder / "train.json")
    with pytest.raises(DataError, match=r"train\.json: the evaluator compares with this file"):
        check_data(config)


@pytest.mark.parametrize(
    ("orientation", "size", "words"),
    [
        (3, (64, 64), "1 image with an EXIF"),
        (6, (64, 64), "1 image with an EXIF"),
        (1, (64, 64), ""),
        (6, (64, 32), "EXIF orientation turns it to 32 x 64 pixels, but its annotation is for 64 x 32"),
    ],
)
def test_exif_orientation(own, orientation, size, words):
    """Annotations of the stored pixels are refused where the size shows them, and mentioned where it does not."""
    from PIL import Image

    folder, config_file = own
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", size).save(folder / "images" / "turned.jpg", exif=exif)

    def change(content):
        content["images"][0].update(file_name="turned.jpg", width=size[0], height=size[1])
        for annotation in content["annotations"]:
            if annotation["image_id"] == content["images"][0]["id"]:
                annotation.update(bbox=[1, 1, 20, 20], area=400, segmentation=[])

    edit(folder / "train.json", change)
    if size == (64, 64):
        line = check_data(load_config(config_file))[0]
        assert words in line
        assert ("EXIF" in line) == bool(words)
    else:
        with pytest.raises(DataError, match=words):
            check_data(load_config(config_file))
