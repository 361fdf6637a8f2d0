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
        ("optim_wrapper.optimizer.lr", "1e-3", "optimizer.lr='1e-3' is text; remove the quotes of '1e-3'"),
        ("optim_wrapper.optimizer.lr", "small", "optim_wrapper.optimizer.lr='small' must be float"),
        ("optim_wrapper.optimizer.betas", (0.9, "0.99"), "optim_wrapper.optimizer.betas=(0.9, '0.99') is text"),
        ("optim_wrapper.clip_grad", {"max_norm": "1"}, "optim_wrapper.clip_grad.max_norm='1' is text"),
        ("param_scheduler.0.end", "5", "param_scheduler.0.end='5' is text"),
        ("train_cfg.max_iters", "8", "train_cfg.max_iters='8' is text"),
        ("train_cfg.by_epoch", "False", "train_cfg.by_epoch='False' is text"),
        ("randomness", {"seed": "0"}, "randomness.seed='0' is text"),
        ("train_dataloader.batch_size", "2", "train_dataloader.batch_size='2' is text"),
        ("train_dataloader.sampler.shuffle", "False", "train_dataloader.sampler.shuffle='False' is text"),
        ("train_dataloader.dataset.pipeline.2.prob", "0.5", "train_dataloader.dataset.pipeline.2.prob='0.5' is text"),
        ("train_dataloader.dataset.pipeline.2.prob", "often", "prob='often' must be Union[float, Iterable[float]"),
        ("val_dataloader.dataset.pipeline.1.scale", ("64", 64), "val_dataloader.dataset.pipeline.1.scale=('64', 64)"),
        ("model.test_cfg.nms.iou_threshold", "0.6", "model.test_cfg.nms.iou_threshold='0.6' is text"),
        ("model.bbox_head.stacked_convs", "1", "model.bbox_head.stacked_convs='1' is text"),
        ("default_hooks.logger.interval", "9", "default_hooks.logger.interval='9' is text"),
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

    def choose(loader):
        steps = loader.dataset.pipeline
        steps[3] = dict(type="RandomChoice", transforms=[[steps[3]], [dict(steps[3])]])

    assert problems(choose) == []  # inside other transforms too
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


def test_text_that_looks_like_a_number_is_kept_where_it_is_a_name(config_file):
    config = load_config(config_file, resolve_data=False)
    for name in ("train", "val", "test"):
        dataset = config[f"{name}_dataloader"].dataset
        dataset.metainfo = {"classes": ("1", "2")}
        dataset.update(data_prefix={"img": "2017"}, backend_args={"x": "1"})
    config.model.bbox_head.num_classes = 2
    assert not [p for p in find_problems(config) if "text" in p or "must be" in p]


def test_a_scope_of_its_own_decides_the_arguments(config_file):
    config = load_config(config_file)
    config.train_dataloader.dataset.pipeline.insert(1, {"type": "LoadAnnotations", "_scope_": "mmseg"})
    for argument, count in (("reduce_zero_label", 0), ("with_mask", 1)):
        step = config.train_dataloader.dataset.pipeline[1]
        step[argument] = True
        assert len(find_problems(config, ("train",))) == count, argument
        del step[argument]
