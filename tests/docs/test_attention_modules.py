"""The examples of docs/attention_modules.md run, one after the other, as they are written."""

import re

import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("mmengine")

from visionattn.engine.parts.backbone import Backbone
from visionattn.engine.parts.plugins import is_plugin

PAGE = REPO / "docs/attention_modules.md"


def test_examples():
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 8
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    for config in (names["backbone"], names["other"], names["smaller"]):
        config = {key: value for key, value in config.items() if key != "type"}
        assert any(is_plugin(module) for module in Backbone(**config).modules())
    assert names["logits"].shape == (2, 5)
    assert names["where"].shape == (2, 12, 16)
    torch.testing.assert_close(names["where"].sum(-1), torch.ones(2, 12))
