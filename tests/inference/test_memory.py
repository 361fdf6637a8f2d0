"""A model that has no memory for what it is given: smaller batches, then tiles, then a clear stop."""

import warnings

import numpy as np
import pytest
import torch

from visionattn.errors import OutOfMemoryError
from visionattn.inference import Predictor
from visionattn.inference.memory import available_memory, in_smaller_batches, is_out_of_memory

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: 12 bytes")


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """Collecting garbage takes half a second in a process with all packages loaded."""
    monkeypatch.setattr("visionattn.inference.memory.gc.collect", lambda: 0)


@pytest.mark.parametrize("error", [GPU, CPU])
def test_halves_until_it_fits(error):
    tried, told = [], []

    def run(batch):
        tried.append(len(batch))
        if len(batch) > 2:
            raise error
        return [item * 10 for item in batch]

    assert in_smaller_batches(run, list(range(7)), "a number", told.append) == [item * 10 for item in range(7)]
    assert tried == [7, 3, 1, 2, 4, 2, 2]
    assert told[0] == "a batch of 7 (a number each) does not fit into memory; continuing with batches of 3"


def test_other_errors_pass():
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        in_smaller_batches(fails_otherwise, [1, 2], "x", print)


def fails_otherwise(batch):
    raise RuntimeError("shapes do not fit")


@pytest.fixture
def limited(make_model):
    """A model of rectangles that holds so many pixels at a time."""

    class Limited(type(make_model())):
        pixels = 0

        def predict(self, images):
            if sum(image.shape[0] * image.shape[1] for image in images) > self.pixels:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().predict(images)

    model = Limited()
    return model


def boxes(prediction) -> set[tuple]:
    return {(name, *map(int, box)) for name, box in zip(prediction.names, prediction.boxes, strict=True)}


def test_pictures_too_many_for_one_batch(limited, painted):
    limited.pixels = 2 * 30 * 50
    images = [painted(30, 50, ("red", i, i, i + 10, i + 12)) for i in range(7)]
    with pytest.warns(UserWarning, match=r"batch of 7 \(an image of 50x30 each\) does not fit"):
        found = Predictor.from_model(limited)(images)
    assert [boxes(p) for p in found] == [{("red", i, i, i + 10, i + 12)} for i in range(7)]
    assert max(len(batch) for batch in limited.batches) <= 2


def test_a_picture_too_large_is_cut_into_tiles(limited, painted):
    limited.pixels = 300 * 300
    image = painted(600, 900, ("red", 20, 30, 60, 70), ("blue", 700, 500, 740, 560), ("red", 430, 280, 470, 320))
    small = painted(60, 90, ("blue", 5, 6, 25, 30))
    with pytest.warns(UserWarning, match="continuing with `tile` 225"):
        large, other = Predictor.from_model(limited)([image, small])
    assert boxes(large) == {
        ("red", 20, 30, 60, 70), ("blue", 700, 500, 740, 560), ("red", 430, 280, 470, 320),
    }  # fmt: skip
    assert boxes(other) == {("blue", 5, 6, 25, 30)}


def test_nothing_fits(limited, painted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            OutOfMemoryError, match=r"an image of 128x128 does not fit into memory \(CUDA out of memory\)"
        ):
            Predictor.from_model(limited)(painted(300, 300))
        with pytest.raises(OutOfMemoryError, match="`tile`"):
            Predictor.from_model(limited, tile=64)(np.zeros((200, 200, 3), np.uint8))


def test_masks_that_would_not_fit_are_never_made(make_model, painted, monkeypatch):
    model = make_model(job="instance", with_masks=True, cfg={"model": {"test_cfg": {"rcnn": {"max_per_img": 100}}}})
    predictor = Predictor.from_model(model)
    assert predictor.job.pixel_bytes == 540
    image = painted(600, 900, ("red", 20, 30, 60, 70), ("blue", 700, 500, 740, 560), ("red", 430, 280, 470, 320))
    whole = predictor(image)
    monkeypatch.setattr("visionattn.inference.predictor.available_memory", lambda: 1000 * 300 * 300)
    model.batches.clear()
    with pytest.warns(UserWarning, match="do not fit into memory; continuing with `tile` 225"):
        found = predictor(image)
    assert max(height * width for batch in model.batches for height, width, _ in batch) <= 300 * 300
    assert boxes(found) == boxes(whole)
    model.batches.clear()
    predictor([painted(200, 300)] * 8)  # one fits, eight do not
    assert [len(batch) for batch in model.batches] == [1] * 8


def test_available_memory(tmp_path):
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  500 kB\n")
    assert available_memory(tmp_path) == 500 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for name, text in (
        ("memory.max", "max"),
        ("memory.current", "70000"),
        ("memory.stat", "anon 1\ninactive_file 100"),
    ):
        (group / name).write_text(f"{text}\n")
    assert available_memory(tmp_path) == 500 * 1024
    (group / "memory.max").write_text("100000\n")
    assert available_memory(tmp_path) == 30_100
