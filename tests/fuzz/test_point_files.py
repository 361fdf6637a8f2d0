"""Point clouds, arrays, archives and pickled lists with changed bytes or header words."""

import contextlib
import io
import pickle
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from annotation_loaders import INFOS
from mutations import byte_edits, edited_bytes, edited_text, try_read, word_edits

from visionattn.errors import VisionattnError
from visionattn.heads.action.keypoints import read_points as read_pose
from visionattn.heads.lidar.data.files import read_points
from visionattn.heads.lidar.data.infos import read_mmdet3d_infos
from visionattn.heads.lidar.data.object_database import ObjectDatabase
from visionattn.heads.lidar.data.pcd import lzf_decompress

POINTS = np.arange(12, dtype=np.float32).reshape(3, 4)
HEADER = """# .PCD v0.7
VERSION 0.7
FIELDS x y z intensity
SIZE 4 4 4 4
TYPE F F F F
COUNT 1 1 1 1
WIDTH 3
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS 3
DATA {kind}
"""
PACKED = b"".join(struct.pack("B", 15) + POINTS.T.tobytes()[at : at + 16] for at in range(0, 48, 16))
BODIES = {
    "ascii": "\n".join(" ".join(map(str, row)) for row in POINTS.tolist()).encode() + b"\n",
    "binary": POINTS.tobytes(),
    "binary_compressed": struct.pack("<II", len(PACKED), 48) + PACKED,
}


def _saved(save, *arrays, **named) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


FILES: dict[str, bytes] = {f"{kind}.pcd": HEADER.format(kind=kind).encode() + body for kind, body in BODIES.items()}
FILES |= {
    "a.bin": POINTS.tobytes(),
    "a.npy": _saved(np.save, POINTS),
    "a.npz": _saved(np.savez, points=POINTS),
    "b.npz": _saved(np.savez_compressed, points=POINTS),
}
LOADERS = {
    "point_files": read_points,
    "object_database": ObjectDatabase.load,
    "pose_files": lambda path: read_pose(path, "npy"),
}


@pytest.mark.parametrize("file", FILES)
def test_sound_files(file, place):
    (place / file).write_bytes(FILES[file])
    np.testing.assert_array_equal(read_points(place / file).points[:, :4], POINTS)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("file", FILES)
@given(edits=byte_edits)
def test_changed_bytes(loader, file, place, edits):
    (place / file).write_bytes(edited_bytes(FILES[file], edits))
    try_read(lambda: LOADERS[loader](place / file))


@pytest.mark.parametrize("kind", BODIES)
@given(edits=word_edits)
@example(edits=[("word", 18, "-3"), ("word", 20, "-1")])  # a width and a height below zero, whose product is right
def test_changed_headers(kind, place, edits):
    """Of what is read, the number of points is the header's, and positive."""
    text = edited_text(HEADER.format(kind=kind), edits)
    (place / "a.pcd").write_bytes(text.encode("utf-8", "replace") + BODIES[kind])
    found = try_read(lambda: read_points(place / "a.pcd"))
    if not isinstance(found, VisionattnError):
        sizes = {line.split()[0]: line.split()[1:] for line in text.split("\n") if len(line.split()) > 1}
        assert len(found.points) == int(sizes["WIDTH"][0]) * int(sizes.get("HEIGHT", ["1"])[0])
        assert int(sizes["WIDTH"][0]) >= 0


@given(descr=st.text(max_size=6) | st.sampled_from(["<f4", ">f8", "|O", "<M8[s]", "<c8", "|b1", "<f2", "<U3", "V3"]),
       shape=st.lists(st.integers(-2, 5) | st.integers(), max_size=5).map(tuple), order=st.booleans(),
       data=st.binary(max_size=80))  # fmt: skip
def test_arrays_of_any_type(place, descr, shape, order, data):
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode("latin1", "replace")
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
    (place / "a.npy").write_bytes(content)
    for load in LOADERS.values():
        try_read(lambda load=load: load(place / "a.npy"))


@given(edits=byte_edits, protocol=st.integers(0, 5))
def test_pickled_lists(place, edits, protocol):
    (place / "infos.pkl").write_bytes(edited_bytes(pickle.dumps(INFOS, protocol), edits))
    try_read(lambda: read_mmdet3d_infos(place / "infos.pkl"))


@given(data=st.binary(max_size=40), size=st.integers(0, 300))
def test_lzf(data, size):
    """What is decompressed has the size that was asked for; other data is a ValueError."""
    with contextlib.suppress(ValueError):
        assert len(lzf_decompress(data, size)) == size
