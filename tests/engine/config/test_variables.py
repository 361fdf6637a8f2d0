"""Options on variables of a config file reach the keys that are computed from them, or are refused."""

import pytest

pytest.importorskip("mmengine")

from fixtures.paths import REPO

from visionattn.engine.config.load import load_config
from visionattn.errors import ConfigError

DETECTOR = REPO / "configs/detection/atss/atss_dinat-pico_fpn_coco_custom.py"
SEGMENTOR = REPO / "configs/segmentation/semantic_fpn/semantic-fpn_dinat-pico_masks_custom.py"

BASE = """
size = (64, 64)
interval = 5
steps = [dict(type="A"), dict(type="Resize", scale=size)]
if True:
    doubled = interval * 2
train_dataloader = dict(dataset=dict(type="X", pipeline=steps))
val_dataloader = dict(dataset=dict(type="X", pipeline=[*steps, dict(type="B")]))
train_cfg = dict(max_iters=doubled, val_interval=interval)
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, base: str = BASE):
        (tmp_path / "base.py").write_text(base)
        (tmp_path / "config.py").write_text(
            "_base_ = './base.py'\nmodel = dict(type='M', size={{_base_.size}})\n" + text
        )
        return tmp_path / "config.py"

    return write


def load(path, *options):
    return load_config(path, list(options), resolve_data=False)


@pytest.mark.parametrize(
    ("file", "option", "look", "value"),
    [
        (SEGMENTOR, "scale=(160,120)", lambda c: c.train_dataloader.dataset.pipeline[2].scale, (160, 120)),
        (DETECTOR, "max_iters=50", lambda c: c.train_cfg.max_iters, 50),
        (DETECTOR, "test_pipeline.1.scale=(96,96)", lambda c: c.test_dataloader.dataset.pipeline[1].scale, (96, 96)),
        (
            DETECTOR,
            "train_pipeline.2.scales=[(96,96)]",
            lambda c: c.train_dataloader.dataset.pipeline[2].scales,
            [(96, 96)],
        ),
    ],
)
def test_variables_of_our_configs_act(file, option, look, value):
    assert look(load(file)) != value
    assert look(load(file, option)) == value


def test_a_variable_of_a_base_reaches_every_place(write):
    config = load(write(""), "size=(32,16)", "steps.0.type=C", "interval=7")
    assert config.model.size == (32, 16)
    for loader in (config.train_dataloader, config.val_dataloader):
        assert [step.get("scale") for step in loader.dataset.pipeline[:2]] == [None, (32, 16)]
        assert loader.dataset.pipeline[0].type == "C"
    assert dict(config.train_cfg) == {"max_iters": 14, "val_interval": 7}


def test_a_variable_that_is_assigned_twice(write):
    config = load(write("size = (8, 8)\nval_dataloader = dict(dataset=dict(size=size))\n"), "size=(1,2)")
    assert config.val_dataloader.dataset.size == config.model.size == (1, 2)


def test_a_list_that_a_base_assigns_with_other_elements(write):
    file = write("steps = [dict(type='C', size=3)]\ntest_dataloader = dict(dataset=dict(pipeline=steps))\n")
    config = load(file, "steps.0.size=4")
    assert config.test_dataloader.dataset.pipeline[0].size == 4
    with pytest.raises(ConfigError, match="index into steps must be 0 to 0"):
        load(file, "steps.1.scale=4")


def test_other_options_apply_after_variables(write):
    config = load(write(""), "train_cfg.val_interval=3", "interval=7")
    assert dict(config.train_cfg) == {"max_iters": 14, "val_interval": 3}


def test_a_variable_whose_result_is_replaced_is_refused(write):
    file = write("train_cfg = dict(_delete_=True, max_iters=3, interval=5)\nval_dataloader = dict(_delete_=True)\n")
    with pytest.raises(ConfigError, match=r"interval: changes nothing.*such as train_cfg\.interval"):
        load(file, "interval=7")
    assert load(file, "interval=5").train_cfg.max_iters == 3, "the present value changes nothing, and need not"


def test_a_variable_that_nothing_reads_is_refused(write):
    with pytest.raises(ConfigError, match="no part of the config reads the variable 'unused'"):
        load(write("unused = 3\n"), "unused=4")
    with pytest.raises(ConfigError, match="no key 'nothing'"):
        load(write(""), "nothing=4")


def test_a_variable_keeps_its_type(write):
    with pytest.raises(ConfigError, match="interval must be a number"):
        load(write(""), "interval=often")


def test_a_file_that_overrides_a_variable_of_its_base_in_vain_is_refused(write):
    with pytest.raises(ConfigError, match=r"config\.py: `size` has no effect.*such as model\.size"):
        load(write("size = (9, 9)\n"))
    assert load(write("size = (64, 64)\n")).model.size == (64, 64), "the same value"
    assert load(write("size = (9, 9)\nval_dataloader = dict(batch_size=size[0])\n")).val_dataloader.batch_size == 9


def test_a_misspelled_key_of_a_file_is_refused(write):
    for text, meant in (("train_dataloadr = {}\n", "train_dataloader"), ("stepss = []\n", "steps")):
        with pytest.raises(ConfigError, match=f"is not used; did you mean {meant}"):
            load(write(text))
    load(write("my_own_constant = 4\ntta_model = dict(type='X')\nloops = [interval for interval in range(3)]\n"))


def test_options_that_custom_data_replaces_are_refused(config_file):
    with pytest.raises(ConfigError, match=r"num_classes: is set to 2 from custom_data"):
        load_config(config_file, ["model.bbox_head.num_classes=7"])
    assert load_config(config_file, ["model.bbox_head.num_classes=2"]).model.bbox_head.num_classes == 2
