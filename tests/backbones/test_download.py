"""Pretrained weights: from a local server, and without a network."""

import dataclasses
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
from fixtures.server import Server, file_answer
from timm.models import _registry

from visionattn.backbones import _download
from visionattn.backbones._download import create_model
from visionattn.errors import CheckpointError
from visionattn.io import cache

SIZES = {"embed_dim": 32, "depths": (1, 1, 1, 1), "mlp_ratio": 2.0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which is empty; downloads are not repeated."""
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    download = cache.download
    monkeypatch.setattr(cache, "download", lambda *args, **options: download(*args, attempts=1, **options))
    return tmp_path / "cache/models"


def _publish(tag: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the address of the weights in timm's registry, where the model without a tag has an entry of its own."""
    for name in (tag, tag.split(".")[0]):
        cfg = dataclasses.replace(timm.get_pretrained_cfg(name), url=url)
        monkeypatch.setitem(_registry._model_pretrained_cfgs, name, cfg)


def _serve(server: Server, tag: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Publish weights of a small model at an address that ends as those of BiFormer, and return one tensor."""
    torch.manual_seed(sum(tag.encode()))
    model = timm.create_model(tag.split(".")[0], **SIZES)
    path = Path(server.folder) / f"{tag}.pth"
    torch.save({"model": model.state_dict()}, path)
    _publish(tag, server.url(f"/shares/{tag}/root/content", file_answer(path.read_bytes())), monkeypatch)
    return model.head.weight.detach()


@pytest.mark.parametrize("create", [timm.create_model, create_model])
def test_models_whose_addresses_end_alike(server: Server, tmp_path: Path, monkeypatch, folder: Path, create):
    """timm alone stores both under the name "content", and gives the second model the weights of the first."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    server.folder = tmp_path
    tiny = _serve(server, "biformer_tiny.in1k", monkeypatch)
    small = _serve(server, "biformer_small.in1k", monkeypatch)
    assert not torch.equal(tiny, small)
    torch.testing.assert_close(create("biformer_tiny", pretrained=True, **SIZES).head.weight.detach(), tiny)
    torch.testing.assert_close(create("biformer_small.in1k", pretrained=True, **SIZES).head.weight.detach(), small)
    assert {file.name for file in folder.glob("*.pth")} == {"biformer_tiny.in1k.pth", "biformer_small.in1k.pth"}
    server.stop()
    features = create("biformer_tiny", pretrained=True, features_only=True, **SIZES)
    assert features.feature_info.channels() == [32, 64, 128, 256]
    overlay = {"file": tmp_path / "biformer_small.in1k.pth"}
    own = create("biformer_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **SIZES)
    torch.testing.assert_close(own.head.weight.detach(), small)


def test_another_folder_and_another_address(server: Server, tmp_path: Path, monkeypatch):
    server.folder = tmp_path
    _serve(server, "biformer_tiny.in1k", monkeypatch)
    timm.create_model("biformer_tiny", pretrained=True, cache_dir=tmp_path / "own", **SIZES)
    assert (tmp_path / "own/biformer_tiny.in1k.pth").is_file()
    url = server.url("/x/content", server.answers["/shares/biformer_tiny.in1k/root/content"])
    timm.create_model("biformer_tiny", pretrained=True, pretrained_cfg_overlay={"url": url}, **SIZES)
    assert (tmp_path / "cache/models" / cache.name_of(url)).is_file()


@pytest.mark.parametrize("name", ["dinat_mini.in1k", "nat_isotropic_small.in1k", "biformer_tiny.in1k"])
def test_a_failed_download_names_the_address_and_the_place(name, monkeypatch, folder: Path):
    _publish(name, "http://127.0.0.1:9/a.pth", monkeypatch)
    with pytest.raises(CheckpointError) as error:
        create_model(name, pretrained=True)
    text = str(error.value)
    assert text.startswith(f"{name}: cannot download http://127.0.0.1:9/a.pth: no connection")
    assert f"save the file as {folder / name}.pth" in text
    assert "\n" not in text


def test_a_failed_download_of_timm(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/hub")
    cfg = dataclasses.replace(timm.get_pretrained_cfg("resnet10t"), hf_hub_id=None, url="https://host/r.pth")
    monkeypatch.setattr(_download.timm, "get_pretrained_cfg", lambda name: cfg)
    message = r"\(\[Errno -2\] Name or service.*https://host/r\.pth .*/hub/checkpoints/r\.pth"
    with pytest.raises(CheckpointError, match=message):
        create_model("resnet10t", pretrained=True, pretrained_cfg=cfg.to_dict())


def test_weights_of_the_hub_are_named_by_their_page(monkeypatch):
    def refuse(*args, **kwargs):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(CheckpointError, match=r"https://huggingface\.co/timm/resnet10t"):
        create_model("resnet10t", pretrained=True)


def test_random_weights_and_options():
    model = create_model("dinat_pico", num_classes=3)
    assert model.num_classes == 3
