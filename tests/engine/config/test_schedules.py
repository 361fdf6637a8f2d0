"""Schedules follow the length of a run."""

from copy import deepcopy

import pytest

pytest.importorskip("mmengine")

from fixtures.paths import REPO
from mmengine.config import Config

from visionattn.engine.config.load import load_config
from visionattn.engine.config.schedules import fit_length, fitted_line

WARMUP = dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100)
COSINE = dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=1000, T_max=900)


def fitted(schedules, old, new, key="max_iters", **loop):
    before = Config({"param_scheduler": deepcopy(schedules), "train_cfg": {key: old, **loop}})
    config = deepcopy(before)
    config.train_cfg[key] = new
    fit_length(config, before)
    assert before.param_scheduler == schedules
    return config


def test_what_ends_with_the_run_still_does():
    warmup, cosine = fitted([WARMUP, COSINE], 1000, 200).param_scheduler
    assert (warmup["begin"], warmup["end"]) == (0, 100)
    assert (cosine["begin"], cosine["end"], cosine["T_max"]) == (100, 200, 100)
    warmup, cosine = fitted([WARMUP, COSINE], 1000, 4000).param_scheduler
    assert (warmup["end"], cosine["begin"], cosine["end"], cosine["T_max"]) == (100, 100, 4000, 3900)


def test_a_warm_up_longer_than_the_run_is_scaled():
    warmup, cosine = fitted([WARMUP, COSINE], 1000, 50).param_scheduler
    assert (warmup["end"], cosine["begin"], cosine["end"], cosine["T_max"]) == (5, 5, 50, 45)
    (cosine,) = fitted([WARMUP, COSINE], 1000, 1).param_scheduler
    assert (cosine["begin"], cosine["end"], cosine["T_max"]) == (0, 1, 1)


def test_milestones_and_one_cycle():
    steps = dict(type="MultiStepLR", begin=0, end=12, milestones=[8, 11])
    config = fitted([{**WARMUP, "end": 500}, steps], 12, 24, "max_epochs")
    assert config.param_scheduler[0]["end"] == 500, "in iterations, while the run is counted in epochs"
    assert config.param_scheduler[1]["milestones"] == [16, 22]
    assert config.param_scheduler[1]["end"] == 24
    cycle = dict(type="OneCycleLR", by_epoch=False, total_steps=1000)
    assert fitted([cycle], 1000, 300).param_scheduler[0]["total_steps"] == 300
    assert fitted(cycle, 1000, 300).param_scheduler[0]["total_steps"] == 300


def test_schedules_by_optimizer():
    config = fitted({"a": [COSINE], "b": [WARMUP]}, 1000, 500)
    assert (config.param_scheduler["a"][0]["end"], config.param_scheduler["b"][0]["end"]) == (500, 100)


def test_validation_interval():
    assert fitted([], 1000, 50, val_interval=200).train_cfg.val_interval == 50
    assert fitted([], 1000, 500, val_interval=200).train_cfg.val_interval == 200


def test_what_was_fitted_is_said():
    assert fitted_line(fitted([WARMUP, COSINE], 1000, 200)) == (
        "schedules fitted to max_iters=200 (was 1000): LinearLR 0 to 100, CosineAnnealingLR 100 to 200"
    )
    assert set(fitted([COSINE], 1000, 500).to_dict()) == {"param_scheduler", "train_cfg"}
    assert fitted_line(fitted([COSINE], 1000, 1000)) is None
    assert fitted_line(fitted([], 1000, 500)) is None
    assert fitted_line(fitted([{**WARMUP, "end": 100}], 1000, 2000)) is None


def test_options():
    file = REPO / "configs/detection/atss/atss_dinat-pico_fpn_coco_custom.py"
    for option in ("train_cfg.max_iters=150", "max_iters=150"):
        config = load_config(file, [option], resolve_data=False)
        assert [(s["begin"], s["end"], s.get("T_max")) for s in config.param_scheduler] == [
            (0, 100, None),
            (100, 150, 50),
        ]
        assert config.train_cfg.val_interval == 150
    config = load_config(file, ["train_cfg.max_iters=150", "param_scheduler.1.T_max=7"], resolve_data=False)
    assert (config.param_scheduler[1]["T_max"], config.param_scheduler[1]["end"]) == (7, 1000)
    config = load_config(file, ["train_cfg.max_iters=150", "train_cfg.val_interval=400"], resolve_data=False)
    assert config.train_cfg.val_interval == 400


@pytest.mark.parametrize("length", [1, 2, 7, 99, 100, 101])
@pytest.mark.parametrize(
    "schedule", ["adamw_iters", "adamw_1x", "adamw_3x", "mask2former_90k", "onecycle_20e", "dino_12e"]
)
def test_every_short_run_can_be_built(schedule, length):
    import torch
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    before = Config.fromfile(REPO / f"configs/_base_/schedules/{schedule}.py")
    config = deepcopy(before)
    key = "max_epochs" if "max_epochs" in config.train_cfg else "max_iters"
    config.train_cfg[key] = length
    fit_length(config, before)
    optimizer = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    for scheduler in config.param_scheduler:
        scheduler = dict(scheduler)
        if scheduler.pop("convert_to_iter_based", False):
            scheduler.update(by_epoch=False)
        PARAM_SCHEDULERS.build(scheduler, default_args={"optimizer": optimizer})
