"""The ``custom_data`` block with images and index masks."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("mmseg")

from mmengine.config import Config
from PIL import Image

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.config.custom_data import resolve_custom_data
from visionattn.engine.config.data_checks import check_data
from visionattn.errors import ConfigError, DataError

CLASSES = {"names": ["road", "car", "sky"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "ignore_index": 255}


@pytest.fixture
def data(tmp_path):
    """images/{train,val}, masks/{train,val} and classes.json: three images and two."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for split, count in (("train", 3), ("val", 2)):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(root / f"images/{split}/{number}.jpg")
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(root / f"masks/{split}/{number}.png")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


def config_for(root, **block) -> Config:
    dataset = {"type": "visionattn.MaskFolderDataset", "pipeline": []}
    return Config({
        "default_scope": "mmseg",
        "custom_data": {"root": str(root), "train_mask": None, **block},
        "model": {"decode_head": {"num_classes": 150}, "auxiliary_head": [{"num_classes": 150}, {"num_classes": 150}]},
        "train_dataloader": {"dataset": {"type": "RepeatDataset", "times": 2, "dataset": dict(dataset)}},
        "val_dataloader": {"dataset": {**dataset, "test_mode": True}},
        "test_dataloader": {"dataset": {**dataset, "test_mode": True}},
    })  # fmt: skip


def resolved(root, **block) -> Config:
    config = config_for(root, **block)
    resolve_custom_data(config, "x.py")
    return config


def test_everything_is_filled_in(data):
    config = resolved(data)
    train = config.train_dataloader.dataset.dataset
    assert train.data_prefix == {
        "img_path": str(data / "images/train"),
        "seg_map_path": str(data / "masks/train"),
    }
    assert config.test_dataloader.dataset.data_prefix == config.val_dataloader.dataset.data_prefix
    assert tuple(train.metainfo.classes) == ("road", "car", "sky")
    assert [tuple(c) for c in train.metainfo.palette] == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    heads = [config.model.decode_head, *config.model.auxiliary_head]
    assert [head.num_classes for head in heads] == [3, 3, 3]
    assert check_data(config, ("train", "val", "test")) == [
        "train: 3 images, 3 of 3 classes in their masks",
        "val: 2 images, 2 of 3 classes in their masks; none of sky",
    ]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "annotations/{}"),
        ("{}/images", "{}/labels"),
        ("img_dir/{}", "ann_dir/{}"),
        ("JPEGImages/{}", "SegmentationClass/{}"),
    ],
)
def test_usual_layouts(data, tmp_path, images, masks):
    other = tmp_path / "other"
    for split, folder in (("train", "training"), ("val", "validation")):
        shutil.copytree(data / "images" / split, other / images.format(folder))
        shutil.copytree(data / "masks" / split, other / masks.format(folder))
    config = resolved(other, classes=["a", "b", "c"])
    prefix = config.val_dataloader.dataset.data_prefix
    assert prefix == {
        "img_path": str(other / images.format("validation")),
        "seg_map_path": str(other / masks.format("validation")),
    }
    assert len(check_data(config)) == 2


def test_one_folder_and_lists_of_names(data):
    for split in ("train", "val"):
        for part, suffix in (("images", "jpg"), ("masks", "png")):
            for file in (data / part / split).glob(f"*.{suffix}"):
                file.rename(data / part / f"{split}_{file.name}")
            (data / part / split).rmdir()
        names = sorted(file.stem for file in (data / "images").glob(f"{split}_*"))
        (data / f"{split}.txt").write_text("\n".join(names))
    with pytest.raises(
        DataError, match=r"images of train are not in images/train or .*custom_data.train_list to a file"
    ):
        resolved(data)
    config = resolved(data, train_list="train.txt", val_list="val.txt")
    assert [line.split(",")[0] for line in check_data(config)] == ["train: 3 images", "val: 2 images"]
    assert config.train_dataloader.dataset.dataset.ann_file == str(data / "train.txt")


def test_folders_of_its_own_and_of_test(data):
    (data / "masks/val").rename(data / "truth")
    shutil.copytree(data / "images/val", data / "images/test")
    shutil.copytree(data / "truth", data / "masks/test")
    config = resolved(data, val_mask="truth", test_img="images/test")
    assert config.val_dataloader.dataset.data_prefix.seg_map_path == str(data / "truth")
    assert config.test_dataloader.dataset.data_prefix.seg_map_path == str(data / "masks/test")


def test_classes_in_the_config_and_in_a_list(data):
    config = resolved(data, classes=["a", "b", "c"])
    assert len({tuple(c) for c in config.custom_data.palette}) == 3, "colours of their own"
    (data / "names.json").write_text('["x", "y", "z"]')
    assert list(resolved(data, classes="names.json").custom_data.classes) == ["x", "y", "z"]


def test_resolved_config_needs_no_data(data, tmp_path):
    text = resolved(data).pretty_text.replace(str(data), "/nowhere")
    (tmp_path / "moved.py").write_text(text)
    config = Config.fromfile(str(tmp_path / "moved.py"))
    resolve_custom_data(config)
    assert config.model.decode_head.num_classes == 3
    assert list(config.custom_data.classes) == ["road", "car", "sky"]
    assert [tuple(c) for c in config.test_dataloader.dataset.metainfo.palette] == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


def test_mistakes_in_the_block(data, tmp_path):
    for block, error, message in (
        ({"root": ""}, ConfigError, r"x\.py: custom_data\.root is not set"),
        ({"root": "/no/such"}, DataError, r"custom_data\.root must be an existing folder, got '/no/such'"),
        ({"train_ann": "a.json"}, ConfigError, r"has both train_ann \(COCO data\) and train_mask"),
        ({"classes": "no.json"}, DataError, r"no\.json: the file with the class names does not exist"),
        ({"classes": ["a", "a"]}, ConfigError, r"custom_data\.classes: the name 'a' occurs twice"),
        ({"classes": []}, ConfigError, "must have 1 to 255 classes, got 0"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, ConfigError, "2 classes, but the palette has 1 colors"),
        ({"classes": ["a"], "palette": [[0, 0, 256]]}, ConfigError, r"three integers in \[0, 255\], got \[0, 0, 256\]"),
    ):
        with pytest.raises(error, match=message):
            resolved(**{"root": data, **block})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a JSON file with class names"),
        ('{"labels": ["a"]}', "must contain a list of names"),
        ('{"names": ["a"], "ignore_index": 11}', "ignore_index must be 255, got 11"),
        ('{"names": ["a"], "palette": []}', "has 1 classes, but the palette has 0 colors"),
    ],
)
def test_mistakes_in_the_file_of_classes(data, content, message):
    (data / "classes.json").write_text(content)
    with pytest.raises(DataError, match=rf"classes\.json: {message}"):
        resolved(data)


def test_masks_are_checked_before_a_run(data):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(data / "masks/train/1.png")
    with pytest.raises(DataError, match=r"masks/train/1\.png: contains the value 9 \(64 pixels\), but the 3 classes"):
        check_data(resolved(data))
    (data / "masks/train/1.png").unlink()
    with pytest.raises(DataError, match=r"images/train/1\.jpg: has no mask"):
        check_data(resolved(data))


def test_files_that_are_not_used(data):
    for name in ("images/train/9.heic", "masks/train/8.png"):
        (data / name).touch()
    assert f"; 2 files not used, such as {data / 'images/train/9.heic'}" in check_data(resolved(data))[0]
    (data / "names.txt").write_text("0\n1\n")
    assert "not used" not in check_data(resolved(data, train_list="names.txt"))[0]


@pytest.mark.parametrize(("value", "words"), [(0, "all pixels are of one class"), (255, "no pixel is of a class")])
def test_masks_of_one_class_train_nothing(data, value, words):
    for mask in (data / "masks/train").iterdir():
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"masks/train: nothing to train on|contain only 0 and 255") as caught:
        check_data(resolved(data))
    assert value == 255 or words in str(caught.value)


def test_one_class_trains_nothing(data):
    for split in ("train", "val"):
        for mask in (data / "masks" / split).iterdir():
            Image.fromarray(np.diag(np.full(8, 255, np.uint8))).save(mask)
    with pytest.raises(DataError, match="all pixels are of one class; the background must be a class"):
        check_data(resolved(data, classes=["car"]))


def test_values_are_judged_after_reduce_zero_label(data):
    """With values 0 (unlabeled), 1 and 2, there are two classes."""
    config = resolved(data, classes=["road", "car"])
    with pytest.raises(DataError, match="contains the value 2"):
        check_data(config)
    config.train_dataloader.dataset.dataset.reduce_zero_label = config.val_dataloader.dataset.reduce_zero_label = True
    assert check_data(config) == [
        "train: 3 images, 2 of 2 classes in their masks", "val: 2 images, 1 of 2 classes in their masks; none of car",
    ]  # fmt: skip
    config.val_dataloader.dataset.pipeline = [{"type": "LoadAnnotations", "reduce_zero_label": False}]
    with pytest.raises(ConfigError, match="reduce_zero_label is True in the dataset and False in its LoadAnnotations"):
        check_data(config)
