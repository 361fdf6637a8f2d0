"""Results of validation and test do not depend on the batch size."""

import logging

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from mmengine.model.base_model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor

from visionattn.engine.train.runner import Runner
from visionattn.engine.train.same_size import by_size


class Blurred(BaseModel):
    """Returns the mean over a map that depends on the padding around each image."""

    def __init__(self, preprocessor: BaseDataPreprocessor | None = None) -> None:
        super().__init__(preprocessor or ImgDataPreprocessor(pad_size_divisor=8, pad_value=3))
        self.pool = nn.AvgPool2d(5, 1, 2)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return list(zip(self.pool(inputs).mean((1, 2, 3)).tolist(), data_samples, strict=True))


def batch() -> dict:
    torch.manual_seed(0)
    sizes = [(8, 16), (16, 8), (8, 16), (24, 8)]
    return {"inputs": [torch.rand(3, *size) for size in sizes], "data_samples": ["a", "b", "c", "d"]}


@pytest.mark.parametrize("name", ["val_step", "test_step"])
def test_a_batch_of_several_sizes_gives_the_results_of_single_images(name):
    model, data = Blurred(), batch()
    single = [getattr(model, name)({k: [v[i]] for k, v in data.items()})[0] for i in range(4)]
    padded = getattr(model, name)(data)
    assert max(abs(a - b) for (a, _), (b, _) in zip(padded, single, strict=True)) > 0.1, "padding matters"
    runner = Runner.__new__(Runner)
    runner._distributed, runner._train_dataloader, runner.logger = False, None, logging.getLogger("runner")
    wrapped = runner.wrap_model(None, model)
    for (value, label), (expected, expected_label) in zip(getattr(wrapped, name)(data), single, strict=True):
        assert label == expected_label
        assert value == pytest.approx(expected, abs=1e-6)


def test_other_batches_are_passed_on():
    seen = []
    step = by_size(lambda batch: seen.append(batch))
    images = batch()["inputs"]
    for data in (
        images,
        {"inputs": torch.zeros(2, 3, 4, 4), "data_samples": [1, 2]},
        {"inputs": {"points": images}, "data_samples": [1, 2, 3, 4]},
        {"inputs": images, "data_samples": [1]},
        {"inputs": [images[0], images[2]], "data_samples": [1, 2]},
    ):
        step(data)
        assert seen[-1] is data
