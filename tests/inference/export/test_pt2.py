"""``.pt2`` files, loaded again, give the predictions of their models: a detector, a segmentor, and a forgery model."""

import cv2
import numpy as np
import pytest
import torch

from visionattn.inference import Predictor
from visionattn.inference.export import export_model, network_of_model, network_of_run
from visionattn.inference.export.comparison import match_boxes
from visionattn.inference.options import ExportOptions


@pytest.fixture(scope="module")
def image(shapes_dir):
    file = sorted((shapes_dir / "images").rglob("*.png"))[0]
    return cv2.resize(cv2.imread(str(file)), (128, 96))


def outputs(network, image, tmp_path):
    """The outputs of the program for the image by name, without the batch axis."""
    done = export_model(network, tmp_path / "a.pt2", image.shape[:2])
    assert done.names == network.names
    program = torch.export.load(done.path).module()
    batch = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        return dict(zip(network.names, (value[0].numpy() for value in program(batch)), strict=True))


def test_detector(mask_rcnn_run, image, tmp_path):
    from visionattn.engine.model import config_for, find_run

    path, checkpoint = find_run(mask_rcnn_run)
    config = config_for(path, checkpoint)
    config.model.test_cfg.rpn.update(nms_pre=100, max_per_img=40)
    found = outputs(network_of_run(config, checkpoint, ExportOptions(pasted=True)), image, tmp_path)
    expected = Predictor(config, checkpoint, "cpu", score_thr=0.3)(image)
    kept = found["scores"] >= 0.3
    assert kept.sum() == len(expected) >= 1
    assert found["count"] >= len(expected)
    tensors = [torch.from_numpy(np.array(values)) for values in (expected.boxes, expected.labels)]
    others = [torch.from_numpy(found[name][kept]) for name in ("boxes", "labels")]
    rows, partners = match_boxes(*tensors, *others, 0.99)
    assert len(rows) == len(expected)
    np.testing.assert_allclose(expected.scores[rows], found["scores"][kept][partners], atol=1e-3)
    for row, partner in zip(rows.tolist(), partners.tolist(), strict=True):
        one, other = expected.masks[row], found["masks"][kept][partner].astype(bool)
        assert (one & other).sum() >= 0.99 * (one | other).sum()


def test_segmentor(segmentor_run, image, tmp_path):
    from visionattn.engine.model import find_run

    found = outputs(network_of_run(*find_run(segmentor_run)), image, tmp_path)
    expected = Predictor.from_run(segmentor_run, "cpu")(image)
    assert (found["semantic"] == expected.semantic).mean() >= 0.999


def test_forgery_model(image, tmp_path):
    from visionattn.engine.model import load_model
    from visionattn.zoo import find_model

    model = find_model("forgery")
    loaded = load_model(model.config, model.weights)
    found = outputs(network_of_model(loaded), image, tmp_path)
    expected = Predictor.from_model(loaded)(image)
    np.testing.assert_allclose(found["probability"], expected.heatmap, atol=1e-3)
    np.testing.assert_allclose(found["score"], expected.image_scores[1], atol=1e-3)
    assert (found["mask"] == expected.semantic).mean() >= 0.999
