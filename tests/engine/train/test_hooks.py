"""Hooks of training."""

import pytest

pytest.importorskip("mmengine")

from visionattn.engine.train.hooks import CheckpointHook
from visionattn.errors import ConfigError


def test_a_metric_of_unknown_direction_needs_a_rule():
    with pytest.raises(ConfigError, match=r"`save_best`='pixel_f1' requires rule='greater' or rule='less'"):
        CheckpointHook(save_best="pixel_f1")
    assert CheckpointHook(save_best="pixel_f1", rule="less").rules == ["less"]
