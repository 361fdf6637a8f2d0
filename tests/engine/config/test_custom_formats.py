"""A ``custom_data`` block with a folder in another annotation format."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("mmdet")

from fixtures.annotated import BOXES, photos
from mmengine.config import Config

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.config.custom_data import resolve_custom_data
from visionattn.engine.config.data_checks import check_data
from visionattn.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config_for(root: Path | str, **block) -> Config:
    dataset = {"type": "CocoDataset", "pipeline": []}
    evaluator = {"type": "CocoMetric", "metric": "bbox"}
    return Config({
        "default_scope": "mmdet",
        "custom_data": {"root": str(root), "train_ann": "", "val_ann": "", **block},
        "model": {"bbox_head": {"num_classes": 80}},
        "train_dataloader": {"dataset": dict(dataset)},
        "val_dataloader": {"dataset": {**dataset, "test_mode": True}},
        "test_dataloader": {"dataset": {**dataset, "test_mode": True}},
        "val_evaluator": dict(evaluator),
        "test_evaluator": dict(evaluator),
    })  # fmt: skip


@pytest.mark.parametrize(
    "name", ["yolo: Roboflow", "voc: devkit", "labelme: embedded", "cvat: project", "coco: official"]
)
def test_the_folder_is_enough(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture, name: str):
    BOXES[name](tmp_path / "in", photos())
    config = config_for(tmp_path / "in")
    resolve_custom_data(config, "x.py")
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'in'}: {name.partition(':')[0]} (" in printed
    assert "images without objects, kept: 1, such as" in printed
    assert config.model.bbox_head.num_classes == 2
    assert set(config.custom_data.classes) == {"vest", "helmet"}
    assert Path(config.val_evaluator.ann_file).is_relative_to(cache)
    lines = check_data(config, ("train", "val", "test"))
    assert lines[0].startswith("train: 3 images, ")
    assert lines[1].startswith("val: 2 images, ")


def test_a_resolved_config_converts_again_if_the_cache_is_gone(tmp_path: Path, cache: Path):
    BOXES["yolo: Ultralytics"](tmp_path / "in", photos())
    config = config_for(tmp_path / "in")
    resolve_custom_data(config)
    ann = Path(config.train_dataloader.dataset.ann_file)
    before = ann.read_text()
    shutil.rmtree(cache)
    resolve_custom_data(config)
    assert ann.read_text() == before
    shutil.rmtree(cache)
    shutil.rmtree(tmp_path / "in")
    resolve_custom_data(config)  # on another machine, where only the model is needed
    assert config.model.bbox_head.num_classes == 2


def test_validation_images_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture):
    made = photos()
    for photo in made:
        photo.split = "train"
    BOXES["voc: Roboflow"](tmp_path / "in", made)
    config = config_for(tmp_path / "in", val_share=0.4)
    resolve_custom_data(config)
    assert (
        "images drawn for validation (seed 0), near-duplicates kept together: 2, such as train"
        in capsys.readouterr().out
    )
    names = [
        {
            image["file_name"]
            for image in json.loads(Path(config[f"{s}_dataloader"].dataset.ann_file).read_text())["images"]
        }
        for s in ("train", "val")
    ]
    assert [len(part) for part in names] == [3, 2]
    assert not names[0] & names[1]
    with pytest.raises(ConfigError, match=r"custom_data\.val_share=2 must be a number from 0 to below 1"):
        resolve_custom_data(config_for(tmp_path / "in", val_share=2))


def test_mistakes(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"custom_data\.train_ann is not set.*or custom_data\.root to a folder"):
        resolve_custom_data(config_for(""))
    with pytest.raises(ConfigError, match=r"custom_data\.val_ann is not set; set it to a COCO JSON file$"):
        resolve_custom_data(config_for(tmp_path, train_ann="train.json"))
    with pytest.raises(DataError, match=r"custom_data\.root must be an existing folder"):
        resolve_custom_data(config_for(tmp_path / "none"))
    with pytest.raises(DataError, match="no annotations found"):
        resolve_custom_data(config_for(tmp_path))
    BOXES["yolo: Ultralytics"](tmp_path / "in", photos())
    BOXES["coco: Roboflow"](tmp_path / "in", photos())
    with pytest.raises(DataError, match=r"choose one with custom_data\.format"):
        resolve_custom_data(config_for(tmp_path / "in"))
    resolve_custom_data(config_for(tmp_path / "in", format="coco"))
