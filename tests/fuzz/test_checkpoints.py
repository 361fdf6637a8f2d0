"""Weights files with changed bytes, and with changed content: read, or refused by `CheckpointError`."""

import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from mutations import byte_edits, edited_bytes, edited_document, tree_edits, try_read
from torch import nn

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.weights import fit
from visionattn.errors import CheckpointError

WEIGHTS = nn.Linear(3, 2).state_dict()
CONTENT = {
    "meta": {"epoch": 1, "iter": 2, "cfg": "model = dict(type='x')", "config_name": "x.py", "time": "now", "seed": 0,
             "dataset_meta": {"classes": ["a", "b"], "palette": [[1, 2, 3]]}},
    "state_dict": dict(WEIGHTS),
    "optimizer": {"state": {"0": {"step": 1, "exp_avg": torch.zeros(2, 3)}}, "param_groups": [{"lr": 0.1}]},
    "message_hub": {"log_scalars": {"loss": {"values": torch.ones(2), "counts": torch.ones(2)}}},
}  # fmt: skip


def _saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _safetensors() -> bytes:
    return pytest.importorskip("safetensors.torch").save(WEIGHTS, {"format": "pt"})


FILES = {
    "zip.pth": lambda: _saved(CONTENT),
    "legacy.pth": lambda: _saved(CONTENT, _use_new_zipfile_serialization=False),
    "a.safetensors": _safetensors,
}


def _use(path) -> None:
    checkpoints.read(path)
    fit(nn.Linear(3, 2), checkpoints.read(path), path, partial=True)


@pytest.mark.parametrize("file", FILES)
@given(edits=byte_edits)
def test_changed_bytes(file, place, edits):
    """What is not read as it was written is a `CheckpointError`, or has weights of the right shape."""
    (place / file).write_bytes(edited_bytes(FILES[file](), edits))
    found = try_read(lambda: _use(place / file))
    assert found is None or isinstance(found, CheckpointError)


@pytest.mark.parametrize("file", FILES)
@given(content=st.binary(max_size=80), start=st.integers(0, 40))
def test_noise(file, place, content, start):
    (place / file).write_bytes(FILES[file]()[:start] + content)
    assert isinstance(try_read(lambda: checkpoints.read(place / file)), CheckpointError)


@given(edits=tree_edits)
def test_changed_content(place, edits):
    """Values of other types in other places, saved as PyTorch saves them."""
    (place / "a.pth").write_bytes(_saved(edited_document(CONTENT, edits)))
    try_read(lambda: _use(place / "a.pth"))


@given(edits=tree_edits)
def test_what_is_written_is_read(place, edits):
    """Plain content comes back equal; what is not plain is refused before a file is there."""
    document = edited_document({**CONTENT, "order": OrderedDict(b=1, a=2)}, edits)
    if not isinstance(document, dict):
        return
    (place / "b.pth").unlink(missing_ok=True)
    if try_read(lambda: checkpoints.write(document, place / "b.pth")) is None:
        assert str(checkpoints.read(place / "b.pth")) == str(checkpoints.plain(document))
    else:
        assert not (place / "b.pth").exists()
