"""Annotation files with random changes: each loader reads what is left or refuses it by one of our errors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from annotation_loaders import JSON, NUSCENES, TEXTS, furnished
from mutations import byte_edits, edited_bytes, edited_document, edited_text, tree_edits, try_read, word_edits

from visionattn.data.coco import segmentation_fault


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A furnished folder for each loader."""
    return {name: furnished(tmp_path_factory.mktemp(name)) for name in (*JSON, *TEXTS)}


@pytest.mark.parametrize("loader", JSON)
@given(edits=tree_edits)
def test_documents(loader, folders, edits):
    """JSON with values of other types, sizes and places; pickles of the same for mmdet3d's lists."""
    document, load = JSON[loader]
    try_read(lambda: load(folders[loader], edited_document(document, edits)))


BYTES = [name for name in JSON if name != "mmdet3d_infos"]


def load_bytes(loader: str, folder, content: bytes):
    return JSON[loader][1](folder, {**NUSCENES, "sample_data": content} if loader == "nuscenes" else content)


@pytest.mark.parametrize("loader", BYTES)
@given(edits=byte_edits)
def test_bytes_of_documents(loader, folders, edits):
    document = NUSCENES["sample_data"] if loader == "nuscenes" else JSON[loader][0]
    try_read(lambda: load_bytes(loader, folders[loader], edited_bytes(json.dumps(document).encode(), edits)))


@pytest.mark.parametrize("loader", BYTES)
@given(content=st.binary(max_size=60))
def test_noise(loader, folders, content):
    try_read(lambda: load_bytes(loader, folders[loader], content))


@pytest.mark.parametrize("loader", TEXTS)
@given(edits=word_edits, which=st.integers(0, 9))
def test_texts(loader, folders, edits, which):
    texts, load = TEXTS[loader]
    name = list(texts)[which % len(texts)]
    changed = edited_text(texts[name], edits).encode("utf-8", "replace").decode()
    try_read(lambda: load(folders[loader], texts | {name: changed}))


@given(
    size=st.lists(st.integers(-2, 70) | st.integers(), max_size=3),
    counts=st.lists(st.integers(-1, 3100) | st.integers() | st.floats(), max_size=6) | st.text(max_size=12),
)
def test_run_lengths(size, counts):
    """What passes the check has as many pixels as its size says, so that pycocotools can draw it."""
    from pycocotools import mask as coco_mask

    code = {"size": size, "counts": counts}
    if segmentation_fault(code, (64, 48)) is None:
        drawn = coco_mask.decode(coco_mask.frPyObjects(code, *size) if isinstance(counts, list) else code)
        assert drawn.shape == (48, 64)
        assert set(drawn.ravel().tolist()) <= {0, 1}


@given(runs=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_sound_run_lengths_are_taken(runs):
    counts = [*runs, 48 * 64 - sum(runs)]
    assert segmentation_fault({"size": [48, 64], "counts": counts}, (64, 48)) is None
