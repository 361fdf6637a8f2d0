"""Decoding the outputs of segmentors."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.structures import BaseDataElement, PixelData

from visionattn.heads.segmentation.job import PanopticJob
from visionattn.inference import Options


def test_panoptic_ids_are_decoded(make_model):
    job = PanopticJob(make_model("panoptic", classes=("a", "b", "c")), Options())
    output = BaseDataElement()
    ids = torch.tensor([[[0, 0, 1002], [2001, 2001, 7]]])
    output.set_field(PixelData(sem_seg=ids), "pred_panoptic_seg")
    found = job.prediction(output, (2, 3))
    assert found.labels.tolist() == [0, 2, 1]
    assert np.asarray(found.masks).sum((1, 2)).tolist() == [2, 1, 2]
    assert found.boxes.tolist() == [[0, 0, 2, 1], [2, 0, 3, 1], [0, 1, 2, 2]]
    assert found.semantic.tolist() == [[0, 0, 2], [1, 1, 3]], "3 means no class"
