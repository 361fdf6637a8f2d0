"""Configs with random changes: `visionattn check` finds nothing wrong, or says in our errors what is."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures.paths import REPO
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mutations import edited_document, edited_text, fewer, hostile, tree_edits, try_read, word_edits

from visionattn.cli import build_parser
from visionattn.cli.check import run
from visionattn.engine.config.load import apply_options, load_config, parse_options
from visionattn.errors import VisionattnError

SMALL = REPO / "tests/small"
NAMES = ("mask_rcnn", "segmentor")


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    return {name: load_config(SMALL / f"{name}.py", resolve_data=False).to_dict() for name in NAMES}


def _tame(value: Any) -> Any:
    """Without numbers of layers and channels that would take long to build."""
    if isinstance(value, dict):
        return {key: _tame(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tame(item) for item in value]
    return value % 50 if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 300 else value


def _check(path: Path, *options: str) -> int:
    return run(build_parser("check").parse_args([str(path), *options]))


@pytest.mark.parametrize("name", NAMES)
@fewer(2)
@given(edits=tree_edits)
def test_trees(name, documents, place, edits):
    """A config as JSON, with values of other types, keys removed, renamed, exchanged."""
    (place / "a.json").write_text(json.dumps(_tame(edited_document(documents[name], edits))))
    try_read(lambda: _check(place / "a.json", "--model-only"))


FOUND = {
    "mask_rcnn": {
        "model.rpn_head.loss_cls": 5,
        "model.roi_head.bbox_roi_extractor.featmap_strides": 255,
        "model.roi_head.bbox_roi_extractor.roi_layer": None,
        "model.roi_head.bbox_head.num_classes": None,
        "model.roi_head.bbox_head.roi_feat_size": "/",
        "model.roi_head.bbox_head.type": None,
        "model.roi_head": 1,
        "model": [],
        "custom_data.train_ann": [["train.json"]],
        "custom_data.root": {"": 0},
        "custom_data": 3,
        "val_dataloader": "x",
        "test_dataloader.dataset": None,
        "test_evaluator": [None],
    },
    "segmentor": {
        "model.decode_head.in_index": [None],
        "model.decode_head.feature_strides": [4, None],
        "train_dataloader.dataset.metainfo": "x",
        "train_dataloader.dataset.metainfo.classes": 1.5,
        "default_scope": 7,
    },
}
"""What earlier runs broke on: a traceback in place of a problem with its path."""


@pytest.mark.parametrize(("name", "key", "value"), [(n, k, v) for n, found in FOUND.items() for k, v in found.items()])
def test_found(name, key, value, documents, place, shapes_dir):
    document = copy.deepcopy(documents[name])
    if name == "mask_rcnn":
        document["custom_data"] |= {"root": str(shapes_dir), "classes": "auto"}
    here = document
    *path, last = key.split(".")
    for part in path:
        here = here[part]
    here[last] = value
    (place / "f.json").write_text(json.dumps(document))
    options = () if name == "mask_rcnn" and not key.startswith("model") else ("--model-only",)
    if name == "segmentor" and key.startswith("train_dataloader"):
        options = ()
    assert isinstance(try_read(lambda: _check(place / "f.json", *options)), VisionattnError) or key == "test_evaluator"


@fewer(2)
@given(edits=tree_edits)
def test_with_data(documents, place, shapes_dir, edits):
    block = {"root": str(shapes_dir), "train_ann": "train.json", "val_ann": "val.json", "classes": "auto"}
    parts = {key: value for key, value in documents["mask_rcnn"].items() if "dataloader" in key or "evaluator" in key}
    changed = edited_document({"custom_data": block, **parts}, edits)
    if isinstance(changed, dict):
        changed = {**documents["mask_rcnn"], **changed}
    (place / "b.json").write_text(json.dumps(_tame(changed)))
    try_read(lambda: _check(place / "b.json"))


@pytest.mark.parametrize("name", NAMES)
@fewer(2)
@given(edits=word_edits)
def test_texts(name, place, edits):
    """The Python text with words and lines changed: mostly no Python any more."""
    text = (SMALL / f"{name}.py").read_text().replace("[0.0] * 4", "[0.0, 0.0, 0.0, 0.0]").replace("* 4", "")
    text = re.sub(r"\d{4,}", lambda found: found[0][:2], edited_text(text, edits))
    (place / "c.py").write_bytes(text.encode("utf-8", "replace"))
    try_read(lambda: _check(place / "c.py", "--model-only"))


@given(content=st.binary(max_size=60), suffix=st.sampled_from([".py", ".json", ".yaml", ".yml", ".txt", ""]))
def test_noise(place, content, suffix):
    path = place / f"d{suffix}"
    path.write_bytes(content)
    try_read(lambda: load_config(path))


_KEYS = st.sampled_from(
    ["model", "model.type", "model.backbone.depths", "model.backbone.depths.0", "model.neck.in_channels.1", "load.0",
     "train_dataloader.batch_size", "train_dataloader.dataset.pipeline.0.type", "optim_wrapper.optimizer.lr", "x", "",
     ".", "model.", "model..type", "model.0", "load.9", "load.-1", "meta_keys.0", "custom_data.root", "default_scope.x"]
)  # fmt: skip


@given(items=st.lists(st.tuples(_KEYS | st.text(max_size=5), hostile.map(str) | st.text(max_size=10)), max_size=3))
def test_options(documents, items):
    """``--cfg-options`` of any text."""
    from mmengine.config import Config

    config = Config(documents["mask_rcnn"])
    try_read(lambda: apply_options(config, parse_options([f"{key}={value}" for key, value in items])))
