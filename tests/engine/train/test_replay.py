"""Batches as plain values and back."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import visionattn.openmmlab  # noqa: F401, I001  (before mmdet: it stands in for mmcv's extension)
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.structures import SegDataSample

from visionattn.errors import CheckpointError
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.train.replay import decode, encode


def there_and_back(value, tmp_path):
    checkpoints.write({"batch": encode(value)}, tmp_path / "x.pth")
    return decode(checkpoints.read(tmp_path / "x.pth")["batch"])


def test_detection_samples(tmp_path):
    sample = DetDataSample(metainfo={"img_path": "a.png", "scale_factor": (0.5, 0.5), "order": np.arange(3)})
    sample.gt_instances = InstanceData(bboxes=HorizontalBoxes(torch.rand(2, 4)), labels=torch.tensor([1, 0]))
    sample.gt_instances.masks = BitmapMasks(np.ones((2, 5, 6), np.uint8), 5, 6)
    sample.ignored_instances = InstanceData(masks=PolygonMasks([[np.array([0.0, 0, 4, 0, 4, 4])]], 5, 6))
    batch = {"inputs": [torch.rand(3, 5, 6)], "data_samples": [sample]}
    back = there_and_back(batch, tmp_path)
    assert torch.equal(back["inputs"][0], batch["inputs"][0])
    found = back["data_samples"][0]
    assert isinstance(found, DetDataSample)
    assert found.metainfo["scale_factor"] == (0.5, 0.5)
    assert np.array_equal(found.metainfo["order"], np.arange(3))
    assert torch.equal(found.gt_instances.bboxes.tensor, sample.gt_instances.bboxes.tensor)
    assert torch.equal(found.gt_instances.labels, torch.tensor([1, 0]))
    assert np.array_equal(found.gt_instances.masks.masks, np.ones((2, 5, 6)))
    assert np.array_equal(found.ignored_instances.masks.masks[0][0], [0.0, 0, 4, 0, 4, 4])


def test_segmentation_and_plain_samples(tmp_path):
    seg = SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 4, 4, dtype=torch.long)))
    other = BaseDataElement(metainfo={"label": 3}, score=torch.tensor([0.5]))
    back = there_and_back((seg, [other]), tmp_path)
    assert isinstance(back, tuple)
    assert torch.equal(back[0].gt_sem_seg.data, seg.gt_sem_seg.data)
    assert (back[1][0].label, back[1][0].score.item()) == (3, 0.5)


def test_only_known_classes():
    with pytest.raises(CheckpointError, match="cannot be saved safely"):
        encode([object()])
    with pytest.raises(CheckpointError, match=r"unknown class 'os\.system'"):
        decode({"~kind": "os.system", "meta": {}, "data": {}})
