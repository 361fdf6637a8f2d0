"""Pickles of plain data are read, and nothing in one is run."""

import collections
import os
import pickle
import pickletools

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.io.pickles import read_plain_pickle

PLAIN = {
    "arrays": [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["ab", "c"]),
        np.array(5),
        np.zeros((0, 7)),
        np.arange(3, dtype=">i2"),
        np.array([True, False]),
        np.float64(3.5),
        np.bool_(True),
    ],
    "values": (1, -2.5, None, True, b"bytes", b"", "text", {1, 2}, frozenset({"a"}), {(1, "a"): [[]]}),
    3: {"nested": [{"x": (np.ones(2), "y")}]},
}


def same(first, second) -> bool:
    if isinstance(first, (np.ndarray, np.generic)):
        return type(first) is type(second) and first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_comes_back(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    assert same(PLAIN, read_plain_pickle(path))


def test_a_list_that_is_there_twice_stays_one(tmp_path):
    inner = [np.ones(2)]
    inner.append(inner)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([inner, inner]))
    first, second = read_plain_pickle(tmp_path / "a.pkl")
    assert first is second is first[1]
    np.testing.assert_array_equal(first[0], 1)


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Runs(os.system, "touch pwned"), r"(posix|nt)\.system"),
        (Runs(eval, "open('pwned', 'w')"), r"builtin\w*\.eval"),
        (Runs(getattr, "a", "upper"), r"builtin\w*\.getattr"),
        (Runs(np.load, "x.npy"), r"numpy\.load"),
        (Runs(bytearray, 10**12), "bytearray"),
        (Runs(bytes, 10**12), "bytes constructed in an unsupported way"),
        (Runs(set, "ab"), "a set constructed in an unsupported way"),
        (Runs(np.dtype, "O"), "arrays of 'O'"),
        (Runs(np.ndarray, (10**12,)), "an array constructed in an unsupported way"),
        (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
        (np.array([{}], dtype=object), "arrays of 'O8'"),
        (np.zeros(2, [("a", "f4")]), "arrays of 'V4'"),
        (np.array(["2020"], "M8[D]"), "arrays of 'M8'"),
        (np.arange(3).view(np.matrix), "numpy.matrix"),
        (np.float32, r"numpy\.float32"),
        (np.dtype("f4"), "a type"),
        (PLAIN | {"deep": [(Runs(os.getcwd),)]}, r"(posix|nt)\.getcwd"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, protocol, content, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match=rf"a\.pkl: contains .*{named}.*supported"):
        read_plain_pickle("a.pkl")
    assert not (tmp_path / "pwned").exists()


def test_functions_cannot_be_changed_from_a_pickle(tmp_path):
    """BUILD would set attributes of what GLOBAL gave."""
    code = b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00xK\x01sb."
    assert "BUILD" in [op.name for op, _, _ in pickletools.genops(code)]
    (tmp_path / "a.pkl").write_bytes(code)
    with pytest.raises(DataError, match="a modified function"):
        read_plain_pickle(tmp_path / "a.pkl")


def test_memory_is_asked_for_only_as_far_as_the_file_goes(tmp_path):
    content = pickle.dumps(np.arange(4.0), 2)
    assert b"K\x04" in content
    (tmp_path / "a.pkl").write_bytes(content.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85", 1))
    with pytest.raises(DataError, match="not a pickle"):
        read_plain_pickle(tmp_path / "a.pkl")


def test_damaged_files(tmp_path):
    path = tmp_path / "a.pkl"
    content = pickle.dumps(PLAIN)
    for damaged in (b"", content[:-20], content[:50], b"no pickle", b"\x80\x04Pabc\n."):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.pkl"):
            read_plain_pickle(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_plain_pickle(tmp_path / "none.pkl")
