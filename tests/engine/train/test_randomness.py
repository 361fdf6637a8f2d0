"""Data order and augmentation as functions of the seed and the iteration."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

pytest.importorskip("mmengine")

from mmengine.dataset import DefaultSampler, InfiniteSampler

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.train.randomness import (
    NamedDataset,
    SeededDataset,
    StepSampler,
    resumable_loader,
    seed_iteration,
    words,
)
from visionattn.errors import DataError


class Noise(Dataset):
    """Items that show every generator a transform may use."""

    metainfo = {"classes": ("a",)}  # noqa: RUF012

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.pipeline: list = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        if index == 99:
            raise ValueError("no image")
        drawn = [t.random_generator.random() + t.py_random.random() for t in self.pipeline]
        return index, random.random(), float(np.random.rand()), float(torch.rand(())), drawn


def loader(dataset=None, sampler=DefaultSampler, workers: int = 0, endless: bool = False, seed: int = 5) -> DataLoader:
    dataset = dataset or Noise()
    inner = DataLoader(dataset, 3, sampler=sampler(dataset, seed=seed), num_workers=workers, collate_fn=list)
    return resumable_loader(inner, seed, endless)


def take(data: DataLoader, epoch: int, first: int, count: int | None = None) -> list:
    data.batch_sampler.start(epoch, first)
    batches = []
    for batch in data:
        batches.append(batch)
        if len(batches) == count:
            break
    return batches


def test_epoch_from_any_position():
    whole = [take(loader(), epoch, 0) for epoch in (0, 1)]
    assert [len(e) for e in whole] == [4, 4]
    assert sorted(item[0] for batch in whole[1] for item in batch) == list(range(10))
    assert whole[0] != whole[1]
    for first in range(4, 8):
        assert take(loader(), 1, first) == whole[1][first - 4 :]


@pytest.mark.parametrize("sampler", [InfiniteSampler, DefaultSampler])
def test_endless_from_any_position(sampler):
    whole = take(loader(sampler=sampler, endless=True), 0, 0, 11)
    for first in (1, 4, 9):
        assert take(loader(sampler=sampler, endless=True), 0, first, 11 - first) == whole[first:]


def test_workers_change_nothing():
    assert take(loader(workers=2), 0, 1) == take(loader(), 0, 1)


def test_resuming_reads_no_image_twice(monkeypatch):
    seen = []
    original = Noise.__getitem__
    monkeypatch.setattr(Noise, "__getitem__", lambda self, i: (seen.append(i), original(self, i))[1])
    take(loader(sampler=InfiniteSampler, endless=True), 0, 1000, 2)
    assert len(seen) == 6


def test_reading_leaves_the_models_generators_alone():
    seed_iteration(1, 2)
    expected = random.random(), np.random.rand(), torch.rand(3)
    seed_iteration(1, 2)
    take(loader(), 0, 0)
    # the loader draws one number from PyTorch's generator when it starts; loops seed after that
    assert (random.random(), np.random.rand()) == expected[:2]
    seed_iteration(1, 2)
    dataset = SeededDataset(Noise(), 5, 0)
    assert dataset[(1, 0, 0)] == dataset[(1, 0, 0)] != dataset[(1, 1, 0)]
    assert torch.equal(torch.rand(3), expected[2])


def test_seeds_differ_in_every_part():
    keys = [(0, 1, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1), (0, 1, 0, 0, 0, 1)]
    assert len({words(*key) for key in keys}) == len(keys)


def test_albumentations_follow_the_seed():
    albumentations = pytest.importorskip("albumentations")
    pipeline = [albumentations.Compose([albumentations.HorizontalFlip(p=0.5)])]
    inside = Noise()
    inside.pipeline = pipeline
    dataset = SeededDataset(inside, 5, 0)
    first = dataset[(1, 0, 0)]
    assert dataset[(1, 3, 0)][4] != first[4]
    assert dataset[(1, 0, 0)] == first
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    flips = []
    for iteration in range(16):
        dataset[(1, iteration, 0)]
        flips.append(bool((pipeline[0](image=image)["image"] != image).any()))
    assert len(set(flips)) == 2, "the transforms inside are seeded, not stuck"
    dataset[(1, 3, 0)]
    assert bool((pipeline[0](image=image)["image"] != image).any()) == flips[3]


def test_wrapper_is_its_dataset():
    inside = Noise()
    dataset = SeededDataset(inside, 5, 0)
    assert dataset.metainfo == inside.metainfo
    assert len(dataset) == 10
    dataset.pipeline = ["new"]  # as mmdet's PipelineSwitchHook does
    assert inside.pipeline == ["new"]
    inside.pipeline = []
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[(2, 0, 0)] == dataset[(2, 0, 0)]
    with pytest.raises(AttributeError):
        dataset.nothing  # noqa: B018


def test_unreadable_item_has_a_name():
    with pytest.raises(DataError, match=r"item 99 of Noise: cannot be read or augmented \(no image\)"):
        NamedDataset(Noise(100))[99]


def test_sampler_is_visible_to_hooks():
    steps = StepSampler(BatchSampler(DefaultSampler(Noise(), seed=1), 3, False), endless=False)
    assert isinstance(steps.sampler, DefaultSampler)
    assert len(steps) == 4
