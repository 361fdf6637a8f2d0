"""The trained models in the package: files, cards, and predictions through every door."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from safetensors.torch import load_file

from visionattn.cli import main
from visionattn.engine.config.load import find_config, load_config
from visionattn.errors import CheckpointError, ConfigError
from visionattn.inference import Predictor
from visionattn.io.weights import METADATA, read, write_safetensors
from visionattn.zoo import FOLDER, find_model, model_names, pack

CLASSES = {"blood-cells": 3, "digits": 10, "forgery": 2, "nuclei": 1}


def test_files():
    assert model_names() == sorted(CLASSES)
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 25 * 2**20
    for name in model_names():
        tensors = load_file(find_model(name).weights)
        assert {x.dtype for x in tensors.values() if x.is_floating_point()} == {torch.float16}
        assert all(torch.isfinite(x).all() for x in tensors.values() if x.is_floating_point())


@pytest.mark.parametrize("name", CLASSES)
def test_card(name, capsys):
    model = find_model(name)
    text = model.card.read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n\n")
    for part in ("## Data", "## Results", "## Limits", "License", model.meta["config_name"].removesuffix(".py")):
        assert part in text
    assert main(["models", name]) == 0
    assert capsys.readouterr().out.strip() == text.strip()
    assert main(["models"]) == 0
    assert model.summary in capsys.readouterr().out


def test_sample_image_of_the_package(tmp_path, capsys):
    assert main(["infer", "--model", "nuclei", "--out", str(tmp_path / "out")]) == 0
    assert "nuclei.png, the sample image" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert 95 <= len(record["detections"]) <= 130  # about 110 nuclei are in the image
    assert (tmp_path / "out" / "nuclei.png").is_file()
    assert main(["infer", "--model", "blood-cells", "--out", str(tmp_path / "none")]) == 1
    assert "no INPUT given" in capsys.readouterr().err
    assert main(["infer", "--model", "nuclie", "--out", str(tmp_path / "none")]) == 1
    assert "no such --model: 'nuclie'; did you mean nuclei?" in capsys.readouterr().err
    assert main(["infer", "--config", "x.py", "--out", str(tmp_path / "none")]) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_predictor(name):
    predictor = Predictor.from_pretrained(name, "cpu", score_thr=0.3)
    assert len(predictor.classes) == CLASSES[name]
    prediction = predictor(np.zeros((96, 128, 3), np.uint8))
    if name == "forgery":
        assert prediction.heatmap.shape == (96, 128)
    else:
        assert prediction.boxes.shape[1] == 4


def test_forgery_is_found():
    from visionattn.io.images import read_image

    prediction = Predictor.from_pretrained("forgery", "cpu")(read_image(find_model("forgery").sample))
    assert prediction.forged
    inside = np.zeros((384, 384), bool)
    inside[248:302, 140:219] = True  # the rectangle around the pasted ellipse
    found = prediction.heatmap > 0.5
    assert (found & inside).sum() / found.sum() > 0.5


def test_nuclei_are_found():
    """Bright discs on a dark ground look like nuclei in fluorescence images."""
    rows, columns = np.mgrid[:256, :256]
    image, centres = np.full((256, 256), 12.0), [(60, 70), (60, 180), (150, 120), (200, 210)]
    for y, x in centres:
        image += 120 * np.exp(-(np.maximum(np.hypot(rows - y, columns - x) - 12, 0) ** 2) / 8)
    image = np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    found = Predictor.from_pretrained("nuclei", "cpu", score_thr=0.5)(image)
    masks = np.asarray(found.masks)
    for y, x in centres:
        assert sum(bool(mask[y, x]) for mask in masks) == 1
    areas = masks.sum((1, 2))
    assert (np.abs(np.sqrt(areas / np.pi) - 13) < 4).all()


def test_command(tmp_path, capsys):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    arguments = ["infer", str(tmp_path / "a.png"), "--model", "nuclei", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "out/predictions.json").read_text())["categories"][0]["name"] == "nucleus"
    capsys.readouterr()
    for extra, message in (
        (["--run", "x"], "--model includes a config; remove --run"),
        (["--model", "nucleus"], "nucleus: no such work dir, config or model; did you mean nuclei?"),
    ):
        assert main([*arguments, *extra]) == 1
        assert message in capsys.readouterr().err


def test_configs_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mask-rcnn_dinat-mini_fpn_ms-3x_coco", "mask-rcnn_dinat-mini_fpn_ms-3x_coco.py"):
        assert load_config(name).model.type == "MaskRCNN"
    (tmp_path / "mask-rcnn_dinat-mini_fpn_ms-3x_coco.py").write_text("model = dict(type='Own')\n")
    assert load_config("mask-rcnn_dinat-mini_fpn_ms-3x_coco.py").model.type == "Own", "a file comes first"
    assert find_config("no_such_config").name == "no_such_config"
    with pytest.raises(ConfigError, match="did you mean"):
        load_config("mask-rcnn_dinat-minni_fpn_ms-3x_coco")


def test_pack(tmp_path):
    state = {"a.weight": torch.randn(3, 4), "a.count": torch.tensor(5)}
    meta = {"config_name": "x.py", "iter": 3, "config": "long", "dataset_meta": {"classes": ("a", "b"), "other": 1}}
    meta["image_size"] = (64, 48)
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "iter_3.pth")
    pack(tmp_path / "iter_3.pth", tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    kept = {"config_name": "x.py", "iter": 3, "image_size": [64, 48]}
    assert found["meta"] == {**kept, "dataset_meta": {"classes": ["a", "b"]}}
    torch.testing.assert_close(found["state_dict"]["a.weight"].float(), state["a.weight"], atol=2e-3, rtol=1e-3)
    assert found["state_dict"]["a.count"] == 5
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "iter_3.pth").stat().st_mode


def test_metadata_that_are_not_ours(tmp_path):
    from safetensors.torch import save_file

    for text in ("no json", "[1]", '{"a": ' * 5000):
        save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={METADATA: text})
        with pytest.raises(CheckpointError, match="metadata"):
            read(tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    assert list(read(tmp_path / "b.safetensors")) == ["x"]
    with pytest.raises(ValueError, match="JSON"):
        write_safetensors(tmp_path / "c.safetensors", {"x": torch.zeros(1)}, {"nan": float("nan")})


def test_weights_of_another_model(tmp_path, capsys):
    """Without class names, of a backbone: what is wrong is the file, not the data of the config."""
    state = {n: x for n, x in read(find_model("digits").weights)["state_dict"].items() if n.startswith("backbone.")}
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    image = str(next((FOLDER / "samples").glob("nuclei.*")))
    for weights in (tmp_path / "b.pth", find_model("digits").weights):
        arguments = ["infer", image, "--model", "nuclei", "--weights", str(weights), "--out", str(tmp_path / "out")]
        assert main(arguments) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"error: {weights}: does not fit the model")
        assert error.endswith("It is not a file of nuclei")
    with pytest.raises(CheckpointError, match=r"b\.pth: does not fit the model.* It is not a file of nuclei$"):
        Predictor.from_pretrained("nuclei", "cpu", weights=tmp_path / "b.pth")


def test_weights_without_class_names(tmp_path):
    torch.save({"state_dict": read(find_model("nuclei").weights)["state_dict"]}, tmp_path / "n.pth")
    assert Predictor.from_pretrained("nuclei", "cpu", weights=tmp_path / "n.pth").classes == ("nucleus",)


def test_the_warning_is_the_first_sentence_of_the_limits():
    assert find_model("blood-cells").warning == "All images are from one microscope and one stain."
    assert find_model("forgery").warning == "Its output is no evidence that a photograph was forged."
    assert all(find_model(name).warning.endswith(".") for name in model_names())
