"""Everything that is wrong with a config at once, and nothing that is not."""

import glob
import pickle
from pathlib import Path

import pytest
from fixtures.paths import REPO

pytest.importorskip("mmdet")

import mmdet

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.config.checks import check_config, find_problems
from visionattn.engine.config.load import load_config
from visionattn.errors import ConfigProblemsError


def test_sound_config(config_file):
    assert find_problems(load_config(config_file), ("train", "val", "test")) == []
    check_config(load_config(config_file))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.type", "ATTS", "model.type='ATTS' is not known as a model or task util; did you mean ATSS"),
        ("model.neck.type", "FNP", "model.neck.type='FNP' is not known as a model or task util; did you mean "),
        ("model.backbone.model_name", "dinat_mni", "'dinat_mni' is not known to timm; did you mean dinat_mini"),
        ("model.backbone.chanels", 3, "takes no argument 'chanels'"),
        ("model.bbox_head.type", "ATSHead", "did you mean ATSSHead"),
        ("model.bbox_head.loss_cls.type", "FocaLoss", "model.bbox_head.loss_cls.type='FocaLoss' is not known"),
        ("model.bbox_head.stackedconvs", 2, "model.bbox_head.stackedconvs: ATSSHead takes no such argument; "
         "did you mean stacked_convs"),
        ("model.bbox_head.num_classes", 5, "model.bbox_head.num_classes=5, but the dataset of train_dataloader has 2 "
         "classes (red, blue)"),
        ("model.neck.in_channels", [8, 8, 16], "model.neck.in_channels=[8, 8, 16], but model.backbone has [8, 8, 8]"),
        ("model.neck.in_channels", [8, 8], "model.neck.in_channels=[8, 8], but model.backbone has [8, 8, 8]"),
        ("model.bbox_head.in_channels", 16, "model.bbox_head.in_channels=16, but model.neck has 8"),
        ("train_dataloader.dataset.type", "CocDataset", "train_dataloader.dataset.type='CocDataset' is not known as a "
         "dataset; did you mean CocoDataset"),
        ("train_dataloader.dataset.type", "ATSSHead", "train_dataloader.dataset.type='ATSSHead' "
         "must be a dataset"),
        ("train_dataloader.dataset.pipeline.2.type", "RandomFlipp", "train_dataloader.dataset.pipeline.2.type="
         "'RandomFlipp' is not known as a transform; did you mean RandomFlip"),
        ("train_dataloader.dataset.pipeline.2.probe", 1, "train_dataloader.dataset.pipeline.2.probe: RandomFlip takes "
         "no such argument; did you mean prob"),
        ("train_dataloader.sampler.type", "InfiniteSample", "is not known as a data sampler"),
        ("train_dataloader.batchsize", 1, "train_dataloader.batchsize is not known; did you mean batch_size"),
        ("val_dataloader.dataset.ann_file", "vall.json", "val_dataloader.dataset.ann_file: vall.json does not exist"),
        ("val_dataloader.dataset.data_root", "/no/such", "val_dataloader.dataset.data_root='/no/such' is not a folder; "
         "the deepest existing folder is /"),
        ("default_hooks.checkpoint.type", "CheckpointHok", "default_hooks.checkpoint.type='CheckpointHok' is not known "
         "as a hook; did you mean CheckpointHook"),
        ("custom_hooks", [{"type": "EMAHok"}], "custom_hooks.0.type='EMAHok' is not known as a hook; did you mean "),
        ("val_evaluator.type", "CocMetric", "val_evaluator.type='CocMetric' is not known as a metric"),
        ("optim_wrapper.optimizer.type", "AdmW", "optim_wrapper.optimizer.type='AdmW' is not known as an optimizer"),
        ("optim_wrapper.clip_grad", {"max_nrm": 1}, "optim_wrapper.clip_grad.max_nrm is not known; did you mean max_"),
        ("param_scheduler.0.type", "LinerLR", "param_scheduler.0.type='LinerLR' is not known"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_line_with_its_path(config_file, key, value, expected):
    config = load_config(config_file)
    config.val_dataloader = config.val_dataloader.copy()
    here, *parts = config, *key.split(".")
    for part in parts[:-1]:
        here = here[int(part) if part.isdigit() else part]
    here[parts[-1]] = value
    problems = find_problems(config)
    assert any(expected in problem for problem in problems), problems
    # the same dict stands behind the val and test keys, and a wrong backbone makes one line of its own
    assert len(problems) == 1, problems


def test_close_file_name(config_file, coco_dir):
    config = load_config(config_file)
    config.train_dataloader.dataset.ann_file = str(coco_dir / "trian.json")
    (problem,) = find_problems(config)
    assert f"{coco_dir / 'trian.json'} does not exist; did you mean train.json" in problem


def test_forgery_pairs_need_all_their_parts():
    folder = REPO / "configs" / "forgery" / "synthetic"

    def problems(change):
        config = load_config(folder / "forgery-net_dinat-pico_synthetic-pairs.py")
        change(config.train_dataloader)
        return [p for p in find_problems(config, ("train",)) if "PackForgeryPair" in p]

    assert problems(lambda loader: None) == []
    repeated = problems(
        lambda loader: loader.__setitem__("dataset", dict(type="RepeatDataset", times=2, dataset=loader.pop("dataset")))
    )
    assert repeated == []
    (problem,) = problems(lambda loader: loader.pop("collate_fn"))
    assert "collate_fn=dict(type='visionattn.collate_pairs')" in problem
    assert len(problems(lambda loader: loader.update(collate_fn="pseudo_collate"))) == 1
    (problem,) = problems(lambda loader: loader.dataset.pipeline[3].update(paired=False))
    assert "ForgeImage with paired=True" in problem


def test_all_at_once(config_file):
    config = load_config(config_file)
    config.model.neck.type = "FNP"
    config.model.bbox_head.num_classes = 3
    config.train_dataloader.dataset.pipeline[0].type = "LoadImage"
    with pytest.raises(ConfigProblemsError) as error:
        check_config(config)
    assert len(error.value.problems) == 3
    lines = str(error.value).splitlines()
    assert lines[0] == "tiny.py: 3 problems"
    assert [line.strip() for line in lines[1:]] == list(error.value.problems)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)


def test_mmseg_levels_and_scope(config_file, tmp_path):
    pytest.importorskip("mmseg")
    text = """
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder", data_preprocessor=dict(type="SegDataPreProcessor"),
    backbone=dict(type="visionattn.Backbone", model_name="dinat_pico"),
    decode_head=dict(type="UPerHead", in_channels=[32, 64, 128, 99], in_index=[0, 1, 2, 3], channels=8, num_classes=19),
    auxiliary_head=dict(type="FCNHead", in_channels=128, in_index=4, channels=8, num_classes=19))
train_dataloader = dict(dataset=dict(type="CityscapesDataset", pipeline=[dict(type="PackDetInputs")]))
"""
    (tmp_path / "seg.py").write_text(text)
    problems = find_problems(load_config(tmp_path / "seg.py"))
    assert len(problems) == 3, problems
    assert "PackDetInputs' is not in the package default_scope='mmseg'" in problems[0]
    assert problems[1].startswith("model.decode_head.in_channels=[32, 64, 128, 99], but model.backbone has [32, 64,")
    assert "model.auxiliary_head.in_index=4 must be in 0..3: model.backbone has 4 maps" in problems[2]


STOCK = (
    "atss",
    "mask_rcnn",
    "mask2former",
    "detr",
    "deformable_detr",
    "rtmdet",
    "htc",
    "panoptic_fpn",
    "vfnet",
    "fcos",
)


@pytest.mark.parametrize("folder", STOCK)
def test_stock_configs_of_mmdet_are_sound(folder):
    """But for the data, which is not here."""
    files = glob.glob(str(Path(mmdet.__file__).parent / ".mim" / "configs" / folder / "*.py"))
    config = load_config(min(files), resolve_data=False)
    problems = [p for p in find_problems(config) if "data_root=" not in p]
    assert problems == []
