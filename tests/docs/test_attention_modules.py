"""The examples of docs/attention_modules.md run, one after the other, as they are written."""

import re

import torch
from fixtures.paths import REPO

PAGE = REPO / "docs/attention_modules.md"


def test_examples():
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 5
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert names["logits"].shape == (2, 5)
    assert names["where"].shape == (2, 12, 16)
    torch.testing.assert_close(names["where"].sum(-1), torch.ones(2, 12))
