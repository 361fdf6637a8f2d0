"""Inference in half precision: what computes in it, and how much predictions change."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmdet")

from visionattn.cli import main
from visionattn.engine.amp import use_amp
from visionattn.errors import ConfigError
from visionattn.inference import Predictor
from visionattn.inference.export.comparison import match_boxes
from visionattn.zoo import find_model


@dataclass
class Output:
    logits: torch.Tensor
    count: torch.Tensor


class Part(nn.Module):
    """A layer that notes the dtype it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.dtype = None

    def forward(self, x):
        y = self.layer(x)
        self.dtype = y.dtype
        return {"maps": [y, (y + 1,)], "result": Output(y, torch.tensor(3))}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.roi_head, self.loss = Part(), nn.Module(), None
        self.roi_head.bbox_head, self.roi_head.bbox_roi_extractor = nn.ModuleList([Part(), Part()]), Part()

    def forward(self, x):
        x = self.backbone(x)["maps"][0]
        x = self.roi_head.bbox_roi_extractor(x)["result"].logits
        for head in self.roi_head.bbox_head:
            x = head(x)["maps"][1][0]
        return x


def test_layers_compute_in_bfloat16_and_return_float32():
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(16, 64)
    expected = model(x)
    use_amp(model)
    found = model(x)
    parts = [model.backbone, *model.roi_head.bbox_head]
    assert [part.dtype for part in parts] == [torch.bfloat16] * 3
    assert model.roi_head.bbox_roi_extractor.dtype == torch.float32  # boxes are coordinates
    nested = model.backbone(x)
    assert nested["maps"][0].dtype == nested["maps"][1][0].dtype == nested["result"].logits.dtype == torch.float32
    assert nested["result"].count.dtype == torch.int64
    assert model.backbone.layer.weight.dtype == torch.float32
    # eight bits: each of the three layers rounds its input and weights, by 2^-9 of their values
    assert 0 < (found - expected).norm() / expected.norm() < 3 * 3 * 2**-9
    assert not torch.is_autocast_enabled("cpu")


@pytest.fixture(scope="module")
def image():
    return cv2.imread(str(find_model("digits").sample))


def test_boxes(image):
    """Those with a score above 0.25 are found in both."""
    expected = Predictor.from_pretrained("digits", "cpu", score_thr=0.2)(image)
    found = Predictor.from_pretrained("digits", "cpu", score_thr=0.2, amp=True)(image)
    values = [torch.from_numpy(np.asarray(v)) for p in (expected, found) for v in (p.boxes, p.labels)]
    rows, partners = match_boxes(*values, 0.9)
    assert set(np.flatnonzero(expected.scores > 0.25)) <= set(rows.tolist())
    assert set(np.flatnonzero(found.scores > 0.25)) <= set(partners.tolist())
    difference = np.abs(expected.scores[rows] - found.scores[partners])
    assert len(difference) >= 4
    assert 0 < difference.max() < 0.03


def test_class_maps(segmentor_run, shapes_dir):
    file = sorted((shapes_dir / "images").rglob("*.png"))[0]
    expected, found = (Predictor.from_run(segmentor_run, "cpu", amp=amp)(file) for amp in (False, True))
    assert (expected.semantic == found.semantic).mean() >= 0.99


def test_exported_files_are_refused(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    from fixtures.programs import save_program

    path = save_program(
        tmp_path / "a.onnx", [(("ReduceMean", ["image", "axes"], ["logits"]), {})],
        {"axes": np.array([2, 3])}, {"logits": (1, ["batch", 3, 1, 1])},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="`amp` does not apply to exported files"):
        Predictor.from_onnx(path, amp=True)
    assert main(["infer", "a.png", "--onnx", str(path), "--amp"]) == 1
    assert "error: --amp does not apply to exported files; visionattn export --half" in capsys.readouterr().err
    assert main(["test", "--onnx", str(path), "--amp"]) == 1
    assert "error: --amp does not apply to --onnx; visionattn export --half" in capsys.readouterr().err
