"""Checkpoints: nothing in a file can run code, and a file is whole or not there."""

import os
import pickle
import zipfile
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from mmengine import runner as mmengine_runner
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as stock

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.compat import install
from visionattn.errors import CheckpointError

install()


class Bomb:
    """Creates a file when it is unpickled by an unsafe loader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def bomb(tmp_path) -> Path:
    torch.save({"state_dict": {"w": torch.ones(1)}, "meta": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pth")
    return tmp_path / "bomb.pth"


ROADS = {
    "read": checkpoints.read,
    "loader": lambda path: CheckpointLoader.load_checkpoint(str(path), logger="silent"),
    "load_checkpoint": lambda path: stock.load_checkpoint(nn.Linear(1, 1), str(path), logger="silent"),
    "prefix": lambda path: stock._load_checkpoint_with_prefix("w", str(path)),
    "local": lambda path: stock.load_from_local(str(path), "cpu"),
    "hub": lambda path: stock.load_from_http(path.as_uri(), model_dir=str(path.parent / "cache")),
}


@pytest.mark.parametrize("road", ROADS)
def test_malicious_file_is_refused_on_every_road(bomb, road, monkeypatch):
    # the switch that would turn torch.load's default off must not matter either
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError) as refusal:
        ROADS[road](bomb)
    assert not (bomb.parent / "exploded").exists()
    text = str(refusal.value)
    assert "bomb.pth: contains the type" in text
    assert "mkdir" in text
    assert "visionattn convert-checkpoint" in text


def test_the_bomb_works(bomb):
    """Or the test above shows nothing."""
    torch.load(bomb, weights_only=False)
    assert (bomb.parent / "exploded").exists()


def test_old_style_pickle_is_refused(tmp_path):
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match=r"old\.pth"):
        checkpoints.read(tmp_path / "old.pth")
    assert not (tmp_path / "exploded").exists()


def test_a_class_of_mmengine_is_refused_by_name(tmp_path):
    """What mmengine itself would save."""
    torch.save({"state_dict": {}, "message_hub": {"loss": HistoryBuffer([1.0], [1])}}, tmp_path / "mm.pth")
    with pytest.raises(CheckpointError, match=r"contains the type mmengine\.logging\.history_buffer\.HistoryBuffer"):
        checkpoints.read(tmp_path / "mm.pth")


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_cut_file(tmp_path, model, size):
    path = tmp_path / "cut.pth"
    checkpoints.write({"state_dict": model.state_dict()}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut\.pth: (is empty|truncated or not a PyTorch checkpoint)"):
        checkpoints.read(path)


def test_a_flipped_bit_is_found(tmp_path, model):
    """PyTorch itself would load the wrong weight."""
    path, weights = tmp_path / "rot.pth", model.state_dict()
    checkpoints.write({"state_dict": weights}, path)
    content = bytearray(path.read_bytes())
    place = content.find(weights["0.weight"].numpy().tobytes())
    content[place + 17] ^= 4
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["0.weight"], weights["0.weight"])
    with pytest.raises(CheckpointError, match=r"rot\.pth: damaged, wrong checksum of .*"):
        checkpoints.read(path)


def test_parts_that_grow_are_refused(tmp_path):
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"bomb\.pth: contains compressed records"):
        checkpoints.read(tmp_path / "bomb.pth")


def test_files_of_old_versions_have_no_checksums(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert set(checkpoints.read(tmp_path / "old.pth")) == set(model.state_dict())


def test_missing_file_and_wrong_content(tmp_path):
    with pytest.raises(CheckpointError, match="checkpoint file does not exist"):
        checkpoints.read(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="contains a list"):
        checkpoints.read(tmp_path / "list.pth")


def test_whatever_a_run_keeps_comes_back_plain(tmp_path, model):
    content = {
        "state_dict": model.state_dict(),
        "numbers": (1, 2.5, True, None, np.float32(1.5), np.int64(7)),
        "arrays": {"a": np.arange(3), "names": np.array(["x", "y"])},
        "kept": deque([1, 2], 2),
        "set": {3},
        "order": OrderedDict(b=1, a=2),
        "path": Path("a/b"),
        "dtype": torch.float16,
        "hub": HistoryBuffer([1.0, 2.0], [1, 2]),
        "view": torch.arange(1000)[:2],
    }
    checkpoints.write(content, tmp_path / "all.pth")
    back = torch.load(tmp_path / "all.pth", weights_only=True)
    assert back["numbers"] == (1, 2.5, True, None, 1.5, 7)
    assert back["arrays"]["a"].tolist() == [0, 1, 2]
    assert back["arrays"]["names"] == ["x", "y"]
    assert back["kept"] == [1, 2]
    assert back["set"] == [3]
    assert list(back["order"]) == ["b", "a"]
    assert back["path"] == "a/b"
    assert back["dtype"] == "torch.float16"
    assert back["hub"]["values"].tolist() == [1.0, 2.0]
    assert back["hub"]["counts"].tolist() == [1.0, 2.0]
    assert back["view"].untyped_storage().nbytes() == 16, "only the two numbers that the view shows"
    assert back["state_dict"]._metadata["1"]["version"] == 2, "batch norm's version, for load_state_dict"
    assert torch.equal(back["state_dict"]["0.weight"], model[0].weight)


def test_what_is_not_plain_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint\.meta\.thing contains a .*Conv2d"):
        checkpoints.write({"meta": {"thing": nn.Conv2d(1, 1, 1)}}, tmp_path / "no.pth")
    assert list(tmp_path.iterdir()) == []


def test_mmengine_saves_and_loads_through_us(tmp_path, model):
    mmengine_runner.save_checkpoint({"state_dict": model.state_dict(), "message_hub": _hub()}, str(tmp_path / "mm.pth"))
    torch.load(tmp_path / "mm.pth", weights_only=True)
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "mm.pth"), logger="silent")
    history = loaded["message_hub"]["log_scalars"]["loss"]
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == 1.5


def _hub() -> dict:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    return {"log_scalars": {"loss": history}, "runtime_info": {}, "resumed_keys": {"loss": True}}


def test_failed_write_leaves_the_old_file(tmp_path, model, monkeypatch):
    path = tmp_path / "iter_1.pth"
    checkpoints.write({"state_dict": {"w": torch.ones(2)}}, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"iter_1\.pth: cannot be written \(No space left"):
        checkpoints.write({"state_dict": model.state_dict()}, path)
    assert torch.equal(checkpoints.read(path)["state_dict"]["w"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["iter_1.pth"], "and no temporary file"


def test_written_file_is_synced_before_it_is_named(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    checkpoints.write({"w": torch.ones(1)}, tmp_path / "a.pth")
    assert events == ["fsync", "rename", "fsync"]


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(checkpoints.state_dict_of(checkpoints.read(tmp_path / "a.safetensors"))["w"], torch.ones(2))
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        checkpoints.read(tmp_path / "b.safetensors")


def test_newest_whole_checkpoint(tmp_path):
    assert checkpoints.newest(tmp_path) == (None, [])
    for number in (2, 10, 9):
        checkpoints.write({"meta": {"iter": number}}, tmp_path / f"iter_{number}.pth")
    (tmp_path / "best_AP_iter_20.pth").write_bytes(b"")
    assert [p.name for p in checkpoints.candidates(tmp_path)] == ["iter_10.pth", "iter_9.pth", "iter_2.pth"]
    (tmp_path / "iter_10.pth").write_bytes(b"half")
    path, reasons = checkpoints.newest(tmp_path)
    assert path == tmp_path / "iter_9.pth"
    assert len(reasons) == 1
    assert "iter_10.pth" in reasons[0]


def test_remote_stores_are_refused():
    with pytest.raises(CheckpointError, match="copy the file to this machine"):
        CheckpointLoader.load_checkpoint("s3://bucket/a.pth", logger="silent")


def test_no_network_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot download") as error:
        stock.load_from_http("http://127.0.0.1:9/a.pth", model_dir=str(tmp_path))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.pth"))
