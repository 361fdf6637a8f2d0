"""Items of forgery sets against recorded ones of IMDLBenCo."""

import json

import cv2
import numpy as np
import pytest
import torch

from visionattn.errors import DataError
from visionattn.heads.forgery.benco import ForgeryImages, edge_mask, train_augmentations
from visionattn.heads.forgery.sets import ForgeryItem, read_json, read_mani


@pytest.fixture
def recorded(shared_dir, tmp_path):
    fx = torch.load(shared_dir / "parity" / "forgery" / "imdl_dataset_items_a.pt", weights_only=True)
    (tmp_path / "Tp").mkdir()
    (tmp_path / "Gt").mkdir()
    for key, image in fx["inputs"]["images"].items():
        cv2.imwrite(str(tmp_path / "Tp" / f"im_{key}.png"), image.numpy()[:, :, ::-1])
        cv2.imwrite(str(tmp_path / "Gt" / f"im_{key}_mask.png"), fx["inputs"]["masks"][key].numpy())
    rows = [["Tp/im_0.png", "Gt/im_0_mask.png"], ["Tp/im_1.png", "Negative"]]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    return fx["outputs"], tmp_path


def test_recorded_items(recorded):
    outputs, folder = recorded
    sets = {
        "mani_resize": ForgeryImages(read_mani(folder), (64, 64), edge_width=7),
        "mani_pad": ForgeryImages(read_mani(folder), (96, 96), "pad", edge_width=7),
        "json_resize": ForgeryImages(read_json(folder / "set.json"), (64, 64)),
    }
    for name, want in outputs.items():
        kind, index = name.rsplit("_", 1)
        found = sets[kind][int(index)]
        assert set(found) == set(want)
        for key, value in want.items():
            if key == "image":
                assert torch.allclose(found[key], value, atol=1e-5)
            elif isinstance(value, torch.Tensor):
                assert torch.equal(found[key].double(), value.double()), (name, key)
            else:
                assert found[key] == value


def test_padding_cuts_what_is_larger(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 10, 3), 255, np.uint8))
    item = ForgeryImages([ForgeryItem(tmp_path / "a.png", None)], (16, 16), "pad")[0]
    assert item["shape_mask"].sum() == 16 * 10
    assert item["shape"].tolist() == [16, 10]
    assert item["label"] == 0
    white, black = (1 - 0.485) / 0.229, -0.485 / 0.229
    assert item["image"][0, 0, 0] == pytest.approx(white, abs=1e-5)
    assert item["image"][0, 0, 12] == pytest.approx(black, abs=1e-5)


def test_recorded_edges(shared_dir):
    fx = torch.load(shared_dir / "parity" / "forgery" / "imdl_metrics_a.pt", weights_only=True)
    for width in (3, 7):
        found = edge_mask(fx["inputs"]["edge_in"].numpy(), width)
        assert np.array_equal(found, fx["outputs"][f"edge_{width}"][0, 0].numpy())
    for width in (2, 5):
        with pytest.raises(ValueError, match=f"`width` must be odd .* got {width}"):
            edge_mask(np.zeros((4, 4)), width)


def test_augmentations_move_image_and_mask_together(tmp_path):
    image = np.zeros((80, 96, 3), np.uint8)
    image[20:60, 30:70] = 230
    cv2.imwrite(str(tmp_path / "a.png"), image)
    cv2.imwrite(str(tmp_path / "m.png"), image)
    augment = train_augmentations()
    data = ForgeryImages([ForgeryItem(tmp_path / "a.png", tmp_path / "m.png")], (64, 64), transform=augment)
    agree = []
    for seed in range(12):
        augment.set_random_seed(seed)
        item = data[0]
        bright = item["image"].mean(0, keepdim=True) > 0
        agree.append((bright == item["mask"].bool()).float().mean().item())
    assert np.median(agree) > 0.95  # copies and inpainting change some


def test_a_mask_of_another_size_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "m.png"), np.zeros((8, 9), np.uint8))
    with pytest.raises(DataError, match=r"must have the image size \(8, 8\), got \(9, 8\)"):
        ForgeryImages([ForgeryItem(tmp_path / "a.png", tmp_path / "m.png")])[0]
    with pytest.raises(ValueError, match=r"`fit` must be .* got 'x'"):
        ForgeryImages([], fit="x")
