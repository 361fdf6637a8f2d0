"""Config files: each mistake is one line that names the file, the key and the remedy."""

import json
from copy import deepcopy

import pytest

pytest.importorskip("mmdet")

from mmengine.registry import DefaultScope

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.compat import install
from visionattn.engine.config.build import building
from visionattn.engine.config.load import load_config, parse_options
from visionattn.errors import ConfigError, DataError


def fails(path, options=None) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, options)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_file_names_close_ones(tmp_path, config_file):
    text = fails(tmp_path / "tinny.py")
    assert "tinny.py does not exist; did you mean" in text
    assert "tiny.py" in text


def test_loading_in_the_main_process(config_file):
    options = ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=True"]
    config = load_config(config_file, options)
    assert (config.train_dataloader.num_workers, config.train_dataloader.persistent_workers) == (0, False)


def test_folder_and_wrong_suffix(tmp_path):
    assert "is a folder" in fails(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert "is not a config" in fails(tmp_path / "a.txt")


def test_syntax_error_has_its_line(tmp_path):
    (tmp_path / "a.py").write_text("model = dict(\n    type='ATSS',\n    x=)\n")
    assert "a.py, line 3: " in fails(tmp_path / "a.py")


def test_syntax_error_in_a_base(tmp_path):
    (tmp_path / "base.py").write_text("a = 1\nb = = 2\n")
    (tmp_path / "a.py").write_text("_base_ = 'base.py'\n")
    assert "base.py, line 2" in fails(tmp_path / "a.py")


def test_missing_base(tmp_path):
    (tmp_path / "default_runtime.py").write_text("a = 1\n")
    (tmp_path / "a.py").write_text("_base_ = ['default_runtme.py']\n")
    text = fails(tmp_path / "a.py")
    assert "a.py: its _base_" in text
    assert "default_runtme.py does not exist; did you mean" in text
    assert "default_runtime.py" in text


def test_base_in_a_circle(tmp_path):
    (tmp_path / "a.py").write_text("_base_ = 'b.py'\n")
    (tmp_path / "b.py").write_text("_base_ = 'a.py'\n")
    assert "includes itself" in fails(tmp_path / "a.py")


def test_error_while_running_has_its_line(tmp_path):
    (tmp_path / "a.py").write_text("a = 1\nmodel = dict(depth=undefined)\n")
    text = fails(tmp_path / "a.py")
    assert "a.py, line 2: NameError" in text
    assert "undefined" in text


def test_no_model(tmp_path):
    (tmp_path / "a.py").write_text("a = 1\n")
    assert "has no key 'model'" in fails(tmp_path / "a.py")


def test_failing_import(tmp_path):
    (tmp_path / "a.py").write_text("custom_imports = dict(imports=['no_such_package'])\nmodel = dict(type='X')\n")
    assert "an import fails" in fails(tmp_path / "a.py")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train_cfg.max_iter=3", "train_cfg has no key 'max_iter'; did you mean max_iters"),
        ("train_cfg.max_iters=80O", "must be a number (now 8), got '80O'"),
        ("optim_wraper.x=3", "has no key 'optim_wraper'; did you mean optim_wrapper"),
        ("train_dataloader.batchsize=2", "did you mean batch_size"),
        ("custom_data.trainann=a", "did you mean train_ann"),
        ("model.bbox_head.stackedconvs=2", "(ATSSHead) takes no 'stackedconvs'; did you mean stacked_convs"),
        ("model.neck.num_out=3", "(FPN) takes no 'num_out'; did you mean num_outs"),
        ("default_hooks.checkpoint.intervall=3", "did you mean interval"),
        ("param_scheduler.4.end=3", "the index into param_scheduler must be 0 to 1, got '4'"),
        ("model.test_cfg.score_th=0.1", "did you mean score_thr"),
        ("model.backbone=3", "is a group of keys; set one of them"),
        ("optim_wrapper.clip_grad.max_nrm=3", "did you mean max_norm"),
        ("optim_wrapper.optimizer.lr.x=3", "has no key 'x'"),
        ("nothing", "must be KEY=VALUE"),
    ],
)
def test_mistyped_options_do_not_pass(config_file, option, message):
    assert message in fails(config_file, [option])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("train_cfg.max_iters=3", 3),
        ("optim_wrapper.optimizer.lr=1e-4", 1e-4),
        ("param_scheduler.1.end=20", 20),
        ("model.backbone.drop_rate=0.1", 0.1),
        ("model.bbox_head.reg_decoded_bbox=True", True),
        ("randomness.deterministic=true", True),
        ("optim_wrapper.clip_grad=None", None),
        ("train_dataloader.persistent_workers=False", False),
        ("load_from=a b,c.pth", "a b,c.pth"),
        ("custom_data.root=1", None),
        ("env_cfg.cudnn_benchmark=True", True),
        ("model.data_preprocessor.mean=1,2,3", [1, 2, 3]),
        ("custom_data.classes=[red,blue]", ["red", "blue"]),
    ],
)
def test_good_options_arrive(config_file, option, expected):
    config = load_config(config_file, [option], resolve_data=False)
    value = config
    for part in option.split("=")[0].split("."):
        value = value[int(part) if part.isdigit() else part]
    if option == "custom_data.root=1":
        assert value == "1", "what replaces text stays text"
    else:
        assert value == expected
        assert type(value) is type(expected)


def test_names_with_dots(tmp_path):
    (tmp_path / "a.py").write_text(
        "model = dict(type='X')\n"
        "optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=1.0), "
        "'backbone.norm': dict(lr_mult=1.0)}))\n"
    )
    keys = "optim_wrapper.paramwise_cfg.custom_keys"
    config = load_config(tmp_path / "a.py", [f"{keys}.backbone.norm.lr_mult=0.5"])
    keys = config.optim_wrapper.paramwise_cfg.custom_keys
    assert (keys["backbone"].lr_mult, keys["backbone.norm"].lr_mult) == (1.0, 0.5)


def test_options_as_words():
    assert parse_options(["a.b=1=2", "c="]) == {"a.b": "1=2", "c": ""}


def test_unknown_type_names_close_ones(config_file):
    from mmdet.registry import MODELS

    DefaultScope.get_instance("test_config", scope_name="mmdet")
    config = load_config(config_file, ["model.neck.type=FNP"])
    with (
        pytest.raises(ConfigError, match=r"x\.py: type='FNP' is not known; did you mean .*FPN") as error,
        building("x.py"),
    ):
        MODELS.build(config.model)
    assert "\n" not in str(error.value)


def test_unknown_argument_names_the_class(config_file):
    from mmdet.registry import MODELS

    DefaultScope.get_instance("test_config", scope_name="mmdet")
    config = load_config(config_file)
    config.model.neck.num_out = 3
    with pytest.raises(ConfigError, match=r"x\.py: .*num_out"), building("x.py"):
        MODELS.build(config.model)


def test_custom_data_fills_in_everything(config_file, coco_dir):
    config = load_config(config_file)
    for name in ("train", "val", "test"):
        dataset = config[f"{name}_dataloader"].dataset
        assert dataset.ann_file == str(coco_dir / ("train.json" if name == "train" else "val.json"))
        assert dataset.data_prefix.img == str(coco_dir / "images"), "found where images usually lie"
        assert tuple(dataset.metainfo.classes) == ("red", "blue")
        assert len(dataset.metainfo.palette) == 2
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == str(coco_dir / "val.json")
    assert config.model.bbox_head.num_classes == 2


def test_custom_data_in_wrappers_and_many_heads(config_file, coco_dir):
    config = load_config(config_file, resolve_data=False)
    config.train_dataloader.dataset = {"type": "RepeatDataset", "times": 2, "dataset": config.train_dataloader.dataset}
    config.model = {
        "type": "CascadeRCNN",
        "rpn_head": {"num_classes": 1},
        "roi_head": {"bbox_head": [{"num_classes": 80}, {"num_classes": 80}], "mask_head": {"num_classes": 80}},
    }
    from visionattn.engine.config.custom_data import resolve_custom_data

    resolve_custom_data(config)
    assert [h.num_classes for h in config.model.roi_head.bbox_head] == [2, 2]
    assert config.model.roi_head.mask_head.num_classes == 2
    assert config.model.rpn_head.num_classes == 1
    assert config.train_dataloader.dataset.dataset.ann_file == str(coco_dir / "train.json")


def test_resolved_config_needs_no_data(tmp_path, config_file, coco_dir):
    """The config in a work dir builds its model on a machine that has the weights only."""
    config = load_config(config_file)
    text = config.pretty_text.replace(str(coco_dir), "/nowhere")
    (tmp_path / "moved.py").write_text(text)
    again = load_config(tmp_path / "moved.py")
    assert again.model.bbox_head.num_classes == 2
    assert list(again.custom_data.classes) == ["red", "blue"]
    assert tuple(again.test_dataloader.dataset.metainfo.classes) == ("red", "blue")


def test_custom_data_mistakes(tmp_path, config_file, coco_dir):
    assert "custom_data.train_ann is not set; set it to a COCO JSON file" in fails(
        config_file, ["custom_data.train_ann="]
    )
    for option, message in (
        ("custom_data.train_ann=no.json", r"no\.json: the annotation file does not exist"),
        ("custom_data.root=/no/such", "custom_data.root must be an existing folder, got '/no/such'"),
    ):
        with pytest.raises(DataError, match=message):
            load_config(config_file, [option])
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "half.json").write_text('{"images": [')
    (tmp_path / "lost.json").write_text(
        json.dumps(
            {"images": [{"id": 1, "file_name": "gone.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        )
    )
    for name, message in (
        ("list.json", "not in COCO format"),
        ("half.json", "not a readable COCO JSON file"),
        ("lost.json", r"first image 'gone\.jpg' is neither in .*set custom_data\.train_img"),
    ):
        with pytest.raises(DataError, match=message):
            load_config(config_file, [f"custom_data.train_ann={tmp_path / name}"])


def test_text_is_formatted_once_and_follows_changes(config_file, monkeypatch):
    install()
    config = load_config(config_file)
    text = config.pretty_text
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda *a, **k: pytest.fail("formatted again"))
    assert config.pretty_text == text == deepcopy(config).pretty_text
    monkeypatch.undo()
    config.train_cfg.max_iters = 77
    assert "max_iters=77" in config.pretty_text


@pytest.mark.parametrize(
    ("scope", "option"),
    [("mmdet", "with_mask=True"), ("mmdet", "poly2mask=False"), ("mmseg", "reduce_zero_label=True")],
)
def test_arguments_are_those_of_the_class_in_the_default_scope(tmp_path, scope, option):
    """mmcv, mmdet and mmseg each have a `LoadAnnotations`."""
    file = tmp_path / "a.py"
    steps = [{"type": "LoadAnnotations"}, {"type": "LoadAnnotations", "_scope_": scope}]
    file.write_text(
        f"default_scope = {scope!r}\nmodel = dict(type='X')\n"
        f"train_dataloader = dict(dataset=dict(type='X', pipeline={steps}))\n"
    )
    for index in (0, 1):
        load_config(file, [f"train_dataloader.dataset.pipeline.{index}.{option}"])
        other = "with_nothing=True" if scope == "mmdet" else "with_mask=True"
        with pytest.raises(ConfigError, match="takes no"):
            load_config(file, [f"train_dataloader.dataset.pipeline.{index}.{other}"])
