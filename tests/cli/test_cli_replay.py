"""The command that replays a dump."""

import pytest
import torch

pytest.importorskip("mmdet")

from visionattn.cli import main
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.train.replay import FORMAT

CONFIG = """
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[0.0] * 3, std=[255.0] * 3, size=(32, 32), pad_val=0,
                           seg_pad_val=255),
    backbone=dict(type="visionattn.Backbone", model_name="resnet10t", out_indices=(1,), channels=(4, 4, 4, 4),
                  stem_width=4),
    decode_head=dict(type="FCNHead", in_channels=4, in_index=0, channels=4, num_convs=1, num_classes=2,
                     norm_cfg=dict(type="GN", num_groups=2), dropout_ratio=0.0,
                     loss_decode=dict(type="CrossEntropyLoss")),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
"""


@pytest.fixture
def run(tmp_path):
    """A config, and a function that writes a dump of it with the pixels at a value."""
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    import visionattn.openmmlab  # noqa: F401
    from visionattn.engine.config.build import quiet
    from visionattn.engine.config.load import load_config
    from visionattn.engine.train.replay import write_dump

    file = tmp_path / "tiny.py"
    file.write_text(CONFIG)
    config = load_config(file)
    with quiet(), DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model)

    def dump(value: float):
        sample = SegDataSample(metainfo={"img_path": "a/bad.png", "img_shape": (32, 32), "ori_shape": (32, 32)})
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, 32, 32, dtype=torch.long))
        batch = {"inputs": [torch.full((3, 32, 32), value)], "data_samples": [sample]}
        facts = {"iteration": 5, "rank": 0, "seed": 1, "what": "loss", "autocast": "", "images": ["a/bad.png"]}
        path = tmp_path / "nonfinite_iter_5_rank_0.pth"
        assert write_dump(path, model, batch, facts)
        return path

    return dump


def test_says_where_it_came_up_first(run, capsys):
    assert main(["replay", str(run(float("inf")))]) == 0
    out = capsys.readouterr().out
    assert "iteration 5, stopped because of its loss" in out
    assert "images     bad.png" in out
    assert "NaN or infinity occurred again" in out
    assert main(["replay", str(run(7.0))]) == 1
    assert "all values are finite" in capsys.readouterr().out


def test_what_is_no_dump(run, tmp_path, capsys):
    checkpoints.write({"state_dict": {}}, tmp_path / "iter_5.pth")
    run(0.0)
    assert main(["replay", str(tmp_path / "iter_5.pth")]) == 1
    assert "is not a dump of a stopped run" in capsys.readouterr().err
    checkpoints.write({"format": FORMAT, "seed": 0, "iteration": 5, "rank": 0, "batch": None}, tmp_path / "iter_5.pth")
    assert main(["replay", str(tmp_path / "iter_5.pth")]) == 1
    assert "contains no batch" in capsys.readouterr().err
    (tmp_path / "alone").mkdir()
    (tmp_path / "iter_5.pth").rename(tmp_path / "alone" / "x.pth")
    assert main(["replay", str(tmp_path / "alone" / "x.pth")]) == 1
    assert "set --config" in capsys.readouterr().err
