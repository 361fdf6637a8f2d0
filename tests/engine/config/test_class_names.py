"""Classes of checkpoints and data are matched by name."""

import json
import shutil

import pytest

pytest.importorskip("mmdet")

import numpy as np
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.compat import install
from visionattn.engine.config.checks import find_problems
from visionattn.engine.config.class_names import checkpoint_classes, follow_checkpoint
from visionattn.engine.config.load import load_config
from visionattn.engine.train.runner import dataset_meta, typical_size
from visionattn.errors import ConfigError


@pytest.fixture
def sparse(tmp_path, coco_dir, make_config):
    """Data with the ids 90 for red and 7 for blue, and its config."""
    shutil.copytree(coco_dir, tmp_path / "data")
    for split in ("train", "val"):
        content = json.loads((tmp_path / "data" / f"{split}.json").read_text())
        for record in content["categories"]:
            record["id"] = {1: 90, 2: 7}[record["id"]]
        for record in content["annotations"]:
            record["category_id"] = {1: 90, 2: 7}[record["category_id"]]
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    return make_config(tmp_path / "tiny.py", tmp_path / "data")


def build(dataset):
    install()
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.build({**dataset, "pipeline": [], "lazy_init": False})


def labels(dataset):
    """Number of boxes of each class name."""
    found = [i["bbox_label"] for n in range(len(dataset)) for i in dataset.get_data_info(n)["instances"]]
    return {name: found.count(label) for label, name in enumerate(dataset.metainfo["classes"])}


def test_classes_of_a_checkpoint():
    assert checkpoint_classes({"meta": {"dataset_meta": {"classes": ("a", "b")}}}) == ["a", "b"]
    assert checkpoint_classes({"meta": {"CLASSES": ["a"]}}) == ["a"]
    assert checkpoint_classes({"meta": {"dataset_meta": {"classes": "a"}}}) == ["a"]
    assert checkpoint_classes({"meta": None}) == checkpoint_classes({}) == []


def test_another_order_is_mapped(sparse):
    """Labels follow the checkpoint, and the ids those of the file."""
    config = load_config(sparse)
    before = build(config.train_dataloader.dataset)
    follow_checkpoint(config, ["blue", "red"], ("train", "val"), "x.pth")
    after = build(config.train_dataloader.dataset)
    assert dataset_meta(before)["category_ids"] == (90, 7)
    assert dataset_meta(after)["category_ids"] == (7, 90)
    assert after.metainfo["classes"] == ("blue", "red")
    assert labels(before) == labels(after)
    assert before.get_data_info(0)["instances"] != after.get_data_info(0)["instances"]
    assert config.custom_data.classes == ["blue", "red"]
    assert not [p for p in find_problems(config) if "classes" in p]


def test_other_classes(sparse):
    config = load_config(sparse)
    with pytest.raises(
        ConfigError, match=r"x.pth: has the classes \(red, green\), but val_dataloader has \(red, blue\)"
    ):
        follow_checkpoint(config, ["red", "green"], ("val",), "x.pth")
    assert follow_checkpoint(config, ["red", "green"], ("val",), "x.pth", strict=False) == ["red", "blue"]
    assert config.val_dataloader.dataset.metainfo.classes == ("red", "blue")
    assert follow_checkpoint(config, [], ("val",), "x.pth") == []


def test_masks_in_another_order_are_refused():
    dataset = {"type": "visionattn.MaskFolderDataset", "metainfo": {"classes": ("road", "car")}}
    config = Config({"default_scope": "mmseg", "test_dataloader": {"dataset": dataset}})
    with pytest.raises(ConfigError, match=r"\(car, road\), but test_dataloader numbers them as \(road, car\)"):
        follow_checkpoint(config, ["car", "road"], ("test",), "x.pth")


def test_validation_in_another_order_than_training(sparse):
    config = load_config(sparse)
    config.val_dataloader.dataset.metainfo.classes = ("blue", "red")
    assert any("val_dataloader.dataset lists its classes in another order" in p for p in find_problems(config))
    config.val_dataloader.dataset.metainfo.classes = ("blue", "green")
    assert any("val_dataloader.dataset has other classes" in p for p in find_problems(config))


def test_ids_of_wrapped_and_concatenated_datasets(sparse, coco_dir, make_config, tmp_path):
    one = load_config(sparse).train_dataloader.dataset
    other = load_config(make_config(tmp_path / "other.py", coco_dir)).train_dataloader.dataset
    assert dataset_meta(RepeatDataset(build(one), 2))["category_ids"] == (90, 7)
    for parts, ids in (([one, one], (90, 7)), ([one, other], None)):
        built = ConcatDataset([build(part) for part in parts])
        assert (dataset_meta(built) or {}).get("category_ids") == ids
        assert tuple(dataset_meta(built)["classes"]) == ("red", "blue")


def test_size_of_training_images(sparse, tmp_path):
    config = load_config(sparse)
    dataset = build(config.train_dataloader.dataset)
    width, height = typical_size(dataset)
    sizes = np.array([Image.open(dataset.get_data_info(n)["img_path"]).size for n in range(len(dataset))])
    assert (sizes.min(axis=0) <= (width, height)).all()
    assert (sizes.max(axis=0) >= (width, height)).all()
    assert typical_size(RepeatDataset(dataset, 2)) == (width, height)
    assert typical_size([]) is None

    class Folder(list):
        get_data_info = list.__getitem__

    for name, size in (("a", (30, 20)), ("b", (50, 40)), ("c", (90, 80))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_text("damaged")
    assert typical_size(Folder({"img_path": str(tmp_path / f"{name}.png")} for name in "abcd")) == (50, 40)
    assert typical_size(Folder([{"points": 1}])) is None
