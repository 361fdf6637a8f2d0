"""Tests in two processes, the optimizer's state divided among them, and processes that are lost."""

import json

import pytest
import torch

pytest.importorskip("mmdet")

from fixtures.processes import fail, train_and_test
from mmengine.config import Config

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.load import load_config
from visionattn.engine.train.curve import read_records
from visionattn.engine.train.launch import launch
from visionattn.engine.train.processes import connect
from visionattn.engine.train.testing import test as measure
from visionattn.engine.train.train import train
from visionattn.engine.train.train_options import shard_optimizer
from visionattn.errors import CheckpointError, ConfigError, TrainingError

pytestmark = pytest.mark.usefixtures("quick_start")


def test_sharded_optimizer_and_test(tmp_path, coco_dir, make_config, make_segmentation):
    pytest.importorskip("mmseg")
    (tmp_path / "seg").mkdir()
    segmentor = make_segmentation(tmp_path / "seg")
    train(load_config(segmentor, {"train_cfg.max_iters": 1}), work_dir=tmp_path / "seg" / "run")
    weights = tmp_path / "seg" / "run" / "iter_1.pth"
    segmentor.write_text(segmentor.read_text() + "\ntest_dataloader['dataset']['indices'] = 3\n")
    config = make_config(tmp_path / "tiny.py", coco_dir)
    config.write_text(config.read_text() + "\noptim_wrapper['paramwise_cfg'] = dict(norm_decay_mult=0.0)\n")
    options = {  # 7 images do not divide by two processes
        "train_cfg.max_iters": 4,
        "test_dataloader.dataset.indices": 7,
    }
    result = launch(
        {
            "config": str(config),
            "cfg_options": options,
            "folder": tmp_path,
            "segmentor": {"config": str(segmentor), "weights": weights},
        },
        2,
        train_and_test,
    )

    runs = {name: checkpoints.read(tmp_path / name / "iter_4.pth") for name in ("plain", "sharded", "resumed")}
    for run in runs.values():
        del run["optimizer"]["base_param_settings"]  # what mmengine logs as base_lr, with all defaults of AdamW or not
    assert sum(len(group["params"]) for group in runs["plain"]["optimizer"]["param_groups"]) > 50
    for name in ("sharded", "resumed"):
        for part in ("state_dict", "optimizer", "param_schedulers"):
            assert_equal(runs[name][part], runs["plain"][part])
        kept = ("iter", "loss", "val")
        plain, own = (
            [{k: r[k] for k in kept if k in r} for r in read_records(tmp_path / folder)] for folder in ("plain", name)
        )
        assert own == plain[-len(own) :]
    plain, *divided = result["state"]
    assert all(0 < size < 0.7 * plain for size in divided), result["state"]
    # without the option, and in one process
    resumed = train(
        load_config(config, {**options, "train_cfg.val_interval": 9}),
        work_dir=tmp_path / "one_process",
        resume=tmp_path / "sharded" / "iter_2.pth",
    )
    assert resumed.iterations == 4

    one = measure(load_config(config, options), tmp_path / "plain" / "iter_4.pth", tmp_path / "one")
    two = result["detection"]
    assert (two.images, two.metrics, two.per_class) == (7, one.metrics, one.per_class)
    assert [file.name for file in two.files] == ["results.json", "predictions.bbox.json"]
    images = [[p["image_id"] for p in json.loads(r.files[1].read_text())] for r in (one, two)]
    assert images[0] == images[1]
    assert len(set(images[1])) == 7
    one = measure(load_config(segmentor), weights, tmp_path / "one_seg")
    two = result["segmentation"]
    assert one.metrics["mIoU"] > 0
    assert (two.images, two.metrics, two.per_class) == (3, one.metrics, one.per_class)
    assert set(two.per_class["semantic"]) == {"dark", "light"}
    assert not (tmp_path / ".dist_test").exists()


def assert_equal(value, expected):
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            assert_equal(value[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(value) == len(expected)
        for pair in zip(value, expected, strict=True):
            assert_equal(*pair)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(value, expected)
    else:
        assert value == expected


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("first", CheckpointError, "iter_2.pth: .* missing on .*; the work dir must be a folder that all machines"),
        ("second", CheckpointError, "has checkpoints on .*, but none on the machine of the first process; the work"),
        ("killed", TrainingError, "process .*ended|process exited"),
        ("busy", TrainingError, "did not answer in time .env_cfg.dist_cfg.timeout.; .* resume with `resume`"),
    ],
)
def test_a_lost_process(tmp_path, coco_dir, make_config, how, error, message):
    options = {
        "config": str(make_config(tmp_path / "tiny.py", coco_dir)),
        "cfg_options": {"env_cfg.dist_cfg.timeout": 2 if how == "busy" else 60},
        "how": how,
        "folder": tmp_path,
    }
    with pytest.raises(error, match=message):
        launch(options, 2, fail)


@pytest.mark.parametrize("timeout", [0, -1, "long", True])
def test_wrong_timeout(timeout):
    with pytest.raises(ConfigError, match=r"env_cfg\.dist_cfg\.timeout must be a positive number of seconds, got"):
        connect({"env_cfg": {"dist_cfg": {"timeout": timeout}}})


@pytest.mark.parametrize(
    ("wrapper", "found"),
    [({"optimizer": {"type": "Lion", "lr": 1.0}}, "'Lion'"), ({"a": {"optimizer": {}}}, "several optimizers")],
)
def test_an_optimizer_that_cannot_be_divided(wrapper, found):
    config = Config({"optim_wrapper": wrapper})
    with pytest.raises(ConfigError, match=f"x.py: `shard_optimizer` requires one optimizer .*, got {found}"):
        shard_optimizer(config, True, distributed=True, name="x.py")


def test_one_process_uses_the_optimizer_itself():
    optimizer = {"type": "AdamW", "lr": 1.0}
    config = Config({"optim_wrapper": {"optimizer": optimizer}})
    shard_optimizer(config, True, distributed=True, name="x.py")
    assert config.optim_wrapper.optimizer.type == "ZeroRedundancyOptimizer"
    shard_optimizer(config, False, distributed=False, name="x.py")  # the config of a run
    assert config.optim_wrapper.optimizer == optimizer
