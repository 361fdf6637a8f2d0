"""The nuScenes checkpoint of ScatterFormer: a file with its names and the entries that OpenPCDet writes."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from fixtures.scatterformer_names import detector_shapes
from mmengine.registry import MODELS, DefaultScope

from visionattn.cli import main
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.load import load_config
from visionattn.engine.weights import fit


def test_it_is_converted_and_loads_by_its_names(tmp_path):
    config = load_config("scatterformer_8xb4-20e_nuscenes", resolve_data=False)
    with DefaultScope.overwrite_default_scope("mmengine"):
        model = MODELS.build(config.model)
    weights = {
        name: torch.full(shape, float(number % 97) / 97) if shape else torch.tensor(7)
        for number, (name, shape) in enumerate(detector_shapes().items())
    }
    own = model.state_dict()
    neck = {name: value for name, value in own.items() if name.startswith("neck.")}
    weights |= {f"backbone_2d.{name.removeprefix('neck.')}": value + 1 for name, value in neck.items()}
    weights["global_step"] = torch.tensor([3])
    # What OpenPCDet saves beside the weights, with NumPy numbers, which the restricted loader refuses.
    content = {"epoch": 20, "it": np.int64(5), "model_state": weights, "optimizer_state": None, "version": "pcdet+0.6"}
    torch.save(content, tmp_path / "published.pth")
    assert main(["convert-checkpoint", str(tmp_path / "published.pth"), "--out", str(tmp_path / "plain.pth")]) == 0
    report = fit(model, checkpoints.read(tmp_path / "plain.pth"), tmp_path / "plain.pth")
    assert report.unmatched == ()
    loaded = model.state_dict()
    for name, value in weights.items():
        if name.startswith("dense_head."):
            assert torch.equal(loaded[name.replace("dense_head", "bbox_head")], value), name
    missing = [n for n in own if n not in report.loaded and not n.endswith("num_batches_tracked")]
    assert missing == []
