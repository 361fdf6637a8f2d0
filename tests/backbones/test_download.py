"""Pretrained weights without a network."""

from urllib.error import URLError

import pytest
import torch

from visionattn.backbones import _download
from visionattn.backbones._download import create_model
from visionattn.errors import CheckpointError


def test_a_failed_download_names_the_address_and_the_place(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/hub")
    address = _download.timm.get_pretrained_cfg("dinat_mini").url
    with pytest.raises(CheckpointError) as error:
        create_model("dinat_mini", pretrained=True)
    text = str(error.value)
    assert text.startswith("dinat_mini: the pretrained weights cannot be downloaded ([Errno -2] Name or service")
    assert address in text
    assert f"/hub/checkpoints/{address.rsplit('/', 1)[1]}" in text
    assert "\n" not in text


def test_weights_of_the_hub_are_named_by_their_page(monkeypatch):
    def refuse(*args, **kwargs):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(CheckpointError, match=r"https://huggingface\.co/timm/resnet10t"):
        create_model("resnet10t", pretrained=True)


def test_random_weights_and_options():
    model = create_model("dinat_pico", num_classes=3)
    assert model.num_classes == 3
