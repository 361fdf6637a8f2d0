"""No way of loading weights runs code from the file: every path refuses a pickle that asks for a callable."""

import os

import pytest
import timm
import torch

from visionattn.backbones import load_official

SMALL = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "num_classes": 5}


class Payload:
    """Pickles as a call of ``os.mkdir``; the folder tells that it was made."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture
def poisoned(tmp_path):
    """A file with all weights of a model and a payload, and the folder that the payload makes."""
    model = timm.create_model("dinat_pico", **SMALL)
    path, trace = tmp_path / "poisoned.pth", tmp_path / "trace"
    torch.save({"state_dict": model.state_dict(), "extra": Payload(trace)}, path)
    torch.load(path, weights_only=False)  # the file is what it should be
    assert trace.is_dir()
    trace.rmdir()
    return path, trace


def _pretrained_file(path):
    return timm.create_model("dinat_pico", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **SMALL)


def _pretrained_url(path):
    overlay = {"url": path.as_uri(), "file": None, "num_classes": 5}
    return timm.create_model(
        "dinat_pico", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=path.parent / "cache", **SMALL
    )


def _checkpoint_path(path):
    return timm.create_model("dinat_pico", checkpoint_path=str(path), **SMALL)


def _backbone(path):
    pytest.importorskip("mmengine")
    from visionattn.openmmlab import Backbone

    kwargs = {k: v for k, v in SMALL.items() if k != "num_classes"}
    return Backbone("dinat_pico", pretrained=str(path), **kwargs)


@pytest.mark.parametrize("load", [_pretrained_file, _pretrained_url, _checkpoint_path, _backbone])
def test_a_payload_is_refused(poisoned, load):
    path, trace = poisoned
    with pytest.raises(Exception, match=r"(?i)weights_only|weights only|could execute code") as caught:
        load(path)
    assert "mkdir" in str(caught.value) or "Weights only load failed" in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("load", [_pretrained_file, _pretrained_url, _checkpoint_path, _backbone])
def test_the_same_file_without_payload_loads(poisoned, load):
    path, _ = poisoned
    weights = torch.load(path, weights_only=False)["state_dict"]
    path = path.with_name("clean.pth")
    torch.save({"state_dict": weights}, path)
    model = load(path)
    name = "levels.3.blocks.0.mlp.fc1.weight"
    found = next(value for key, value in model.state_dict().items() if key.endswith(name))
    assert torch.equal(found, weights[name])


def test_load_official_takes_no_unread_pickle(poisoned):
    """It is given what was read, and reads nothing itself."""
    path, trace = poisoned
    with pytest.raises(Exception, match="mkdir"):
        load_official(timm.create_model("dinat_pico", **SMALL), torch.load(path, weights_only=True))
    assert not trace.exists()
