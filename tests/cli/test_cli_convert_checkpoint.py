"""``visionattn convert-checkpoint``: files of mmcv, mmengine and detectron2."""

import argparse
import collections
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from visionattn.cli import main
from visionattn.errors import CheckpointError
from visionattn.io.convert import convert_file, read_any
from visionattn.io.weights import read


class History:
    """Stands for the class of mmengine that is pickled by the name below."""

    def __init__(self) -> None:
        self._log_history, self._count_history = np.array([1.0, 2.0]), np.array([1, 3])
        self.statistics_methods = {"mean": max}


class Config(dict):
    """Stands for mmengine's ConfigDict."""

    def __reduce_ex__(self, protocol):
        return Config, (dict(self),), None, None, None, None


class Own:
    """A class that only its author has."""


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    state = collections.OrderedDict(
        matrix=base, column=base[:, 2], transposed=base.T, half=base[0].half(), brain=base[1].bfloat16(),
        index=torch.arange(5), flags=torch.tensor([True, False]), scalar=torch.tensor(2.5), empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)), big=torch.arange(3).to(torch.uint16),
    )  # fmt: skip
    state._metadata = {"": {"version": 1}}
    return state


@pytest.fixture
def checkpoint(monkeypatch) -> dict:
    """What mmengine's and mmcv's runners save."""
    History.__module__, History.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    Config.__module__, Config.__qualname__ = "mmengine.config.config", "ConfigDict"
    for name, attribute, value in (
        ("mmengine.logging.history_buffer", "HistoryBuffer", History), ("mmengine.config.config", "ConfigDict", Config),
    ):  # fmt: skip
        module = types.ModuleType(name)
        setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)
    meta = {
        "epoch": np.int64(36), "lr": [np.float32(0.5)], "CLASSES": ("cat", "dog"),
        "palette": np.arange(6).reshape(2, 3),
        "config": Config(a=1, b=[Config(c=2)]), "args": argparse.Namespace(seed=3, out=Path("a/b")), "own": Own(),
        "dtype": torch.float16, "names": np.array(["x", "yz"]), "kept": collections.deque([1, 2]), "text": "é",
        "order": collections.defaultdict(list, a=[1]), "big_endian": np.arange(3, dtype=">i4"), "set": {4},
        "nan": float("nan"), "device": torch.device("cuda", 1),
    }  # fmt: skip
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    return {
        "meta": meta,
        "state_dict": weights(),
        "optimizer": optimizer.state_dict(),
        "message_hub": {"log_scalars": {"loss": History()}},
    }


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_file_of_mmengine(checkpoint, tmp_path, new, suffix, capsys):
    content = checkpoint
    if not new:
        del content["state_dict"]["big"]  # the old format has no such storages
    torch.save(content, tmp_path / "source.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=r"visionattn convert-checkpoint .*source\.pth"):
        read(tmp_path / "source.pth")
    out = tmp_path / f"out{suffix}"
    assert main(["convert-checkpoint", str(tmp_path / "source.pth"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "test_cli_convert_checkpoint.Own (1)" in shown
    assert "HistoryBuffer" not in shown
    found = read(out)
    for name, value in content["state_dict"].items():
        assert found["state_dict"][name].dtype == value.dtype, name
        assert torch.equal(found["state_dict"][name], value), name
    meta = found["meta"]
    assert (meta["epoch"], meta["lr"], list(meta["CLASSES"]), meta["text"]) == (36, [0.5], ["cat", "dog"], "é")
    assert torch.as_tensor(meta["palette"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert torch.as_tensor(meta["big_endian"]).tolist() == [0, 1, 2]
    assert meta["config"] == {"a": 1, "b": [{"c": 2}]}
    assert meta["args"] == {"seed": 3, "out": "a/b"}
    assert (meta["dtype"], meta["names"], meta["kept"]) == ("torch.float16", ["x", "yz"], [1, 2])
    assert (meta["order"], meta["set"], meta["device"]) == ({"a": [1]}, [4], "cuda:1")
    assert "own" not in meta
    if suffix == ".pth":
        assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
        history = found["message_hub"]["log_scalars"]["loss"]
        assert history["values"].tolist() == [1.0, 2.0]
        assert history["counts"].tolist() == [1.0, 3.0]
    else:
        assert "not in a safetensors file: optimizer, message_hub" in shown


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_of_detectron2(tmp_path, protocol):
    arrays = {n: v.detach().float().numpy() for n, v in weights().items()}
    arrays["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    content = {"model": arrays, "__author__": "MaskFormer", "matching_heuristics": True}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"model\.pkl: is a pickle, as detectron2 writes; .*convert-checkpoint"):
        read(tmp_path / "model.pkl")
    result = convert_file(tmp_path / "model.pkl")
    assert (result.out, result.tensors, result.dropped) == (tmp_path / "model.safetensors", len(arrays), {})
    found = read(result.out)
    assert found["meta"] == {"__author__": "MaskFormer", "matching_heuristics": True}
    for name, value in arrays.items():
        np.testing.assert_array_equal(found["state_dict"][name].numpy(), value)


def test_pickle_of_python_2(tmp_path):
    """Arrays as text in Latin-1."""
    number = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN" + 2 * number + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85" + dtype
    content = np.array([1.5, -2.0], np.float32).tobytes()
    (tmp_path / "old.pkl").write_bytes(b"\x80\x02}U\x01w" + array + b"\x89U\x08" + content + b"tbs.")
    found, dropped = read_any(tmp_path / "old.pkl")
    assert found["w"].tolist() == [1.5, -2.0]
    assert dropped == {}


def test_existing_files_are_kept(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pth")
    for out in (None, tmp_path / "a.pth"):
        (tmp_path / "a.safetensors").write_bytes(b"mine")
        with pytest.raises(CheckpointError, match="exists; give another file with `out`"):
            convert_file(tmp_path / "a.pth", out)
    assert (tmp_path / "a.safetensors").read_bytes() == b"mine"
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors or \.pth"):
        convert_file(tmp_path / "a.pth", tmp_path / "a.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]


@pytest.mark.parametrize("size", [0, 1, 10, 300, 700, -1])
@pytest.mark.parametrize("new", [True, False])
def test_cut_files(tmp_path, size, new):
    torch.save(
        {"state_dict": dict(weights(), big=torch.zeros(1))}, tmp_path / "a.pth", _use_new_zipfile_serialization=new
    )
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data[:size])
    with pytest.raises(CheckpointError, match=r"a\.pth: .*(is empty|damaged|truncated)"):
        convert_file(tmp_path / "a.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_views_that_need_more_memory_than_the_file(tmp_path):
    for number, view in enumerate((torch.zeros(1).expand(1 << 20, 1 << 10), torch.zeros(1).expand(1 << 40))):
        torch.save({"w": view}, tmp_path / f"{number}.pth")
        with pytest.raises(CheckpointError, match="more memory than the file has"):
            convert_file(tmp_path / f"{number}.pth")


def test_pickled_model(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="contains an object of an unknown class"):
        convert_file(tmp_path / "whole.pth")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="has no weights by name"):
        convert_file(tmp_path / "whole.pth")


def test_cut_in_the_size_of_an_empty_tensor(tmp_path):
    torch.save({"empty": torch.zeros(0, 3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        convert_file(tmp_path / "a.pth")
