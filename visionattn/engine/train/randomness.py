"""Randomness as a function of (seed, iteration), so that a resumed run repeats an unbroken one bit for bit.

Nothing has to be saved for that. The order of the samples comes from mmengine's own seeded samplers, which
`StepSampler` walks to the right position without reading a single image; each sample is augmented under random
generators seeded from (seed, rank, iteration, place in the batch); and before each iteration the generators that
the model uses are seeded from (seed, rank, iteration). The number of data workers changes nothing.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset

from visionattn.engine.train.bad_samples import BadSample, BadSamples, Collate
from visionattn.errors import DataError, VisionattnError

__all__ = [
    "NamedDataset",
    "SeededDataset",
    "StepSampler",
    "reading",
    "resumable_loader",
    "seed_iteration",
    "shut_down",
    "with_named_errors",
    "words",
]

MODEL, SAMPLE = 1, 2  # apart, so that dropout and augmentation never share a stream


def words(*key: int) -> tuple[int, int, int, int]:
    """Four independent 32-bit seeds from whole numbers ≥ 0."""
    return tuple(int(w) for w in np.random.SeedSequence(key).generate_state(4))  # type: ignore[return-value]


def seed_iteration(seed: int, iteration: int, rank: int | None = None) -> None:
    """Seed Python, NumPy and PyTorch (all devices) for one training iteration of a rank, by default this one."""
    first, second, third, fourth = words(seed, MODEL, get_rank() if rank is None else rank, iteration)
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed((third << 32 | fourth) & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def _seeded(key: tuple[int, ...], generators: list[Any]) -> Iterator[None]:
    """Seed the CPU generators from ``key`` inside, and leave them as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second, third, fourth = words(*key)
    random.seed(first)
    np.random.seed(second)
    torch.random.default_generator.manual_seed(third)
    for compose in generators:  # albumentations has generators of its own
        compose.set_random_state(np.random.default_rng(fourth), random.Random(fourth))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class NamedDataset(Dataset):
    """A dataset that names the image when one cannot be read.

    Attributes are those of the dataset inside, for reading and for setting: hooks look for ``metainfo`` and put
    new pipelines in place.
    """

    def __init__(self, dataset: Any) -> None:
        self.__dict__["dataset"] = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except VisionattnError:
            raise
        except Exception as error:
            raise DataError(f"{self._name(index)}: cannot be read or augmented ({_reason(error)})") from error

    def _name(self, index: int) -> str:
        try:
            return str(self.dataset.get_data_info(index)["img_path"])
        except Exception:  # wrappers of datasets differ in what they know
            return f"item {index} of {type(self.dataset).__name__}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # while it is being unpickled in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


class SeededDataset(NamedDataset):
    """A dataset whose items are ``(index, iteration, place)`` of another's, augmented alike at every reading."""

    def __init__(self, dataset: Any, seed: int, rank: int, bad: BadSamples | None = None) -> None:
        self.__dict__.update(dataset=dataset, _seed=seed, _rank=rank, _found=(None, []))
        self.__dict__.update(_tolerant=bad is not None, _known={} if bad is None else bad.known)

    def __getitem__(self, key: tuple[int, int, int]) -> Any:  # type: ignore[override]
        index, iteration, place = key
        if self._known and (name := os.path.abspath(self._name(index))) in self._known:
            return BadSample(name, self._known[name])
        with _seeded((self._seed, SAMPLE, self._rank, iteration, place), self._generators()):
            try:
                return super().__getitem__(index)
            except DataError as error:
                if not self._tolerant:
                    raise
                return BadSample(self._name(index), str(error))

    def _generators(self) -> list[Any]:
        pipeline = getattr(self.dataset, "pipeline", None)
        if self._found[0] is not pipeline or pipeline is None:
            self.__dict__["_found"] = (pipeline, list(_albumentations(self.dataset, set())))
        return self._found[1]


def _albumentations(part: Any, seen: set[int]) -> Iterator[Any]:
    """The outermost albumentations objects inside datasets, pipelines and transforms."""
    if id(part) in seen or isinstance(part, (str, bytes, int, float, np.ndarray, torch.Tensor, type(None))):
        return
    seen.add(id(part))
    if hasattr(part, "set_random_state") and hasattr(part, "py_random"):
        yield part
    elif isinstance(part, (list, tuple)):
        if len(part) < 100:  # transforms, not a list of samples
            for item in part:
                yield from _albumentations(item, seen)
    elif hasattr(part, "__dict__") and not isinstance(part, type):
        for value in vars(part).values():
            if isinstance(value, (list, tuple)) or hasattr(value, "__dict__"):
                yield from _albumentations(value, seen)


class StepSampler:
    """The batches of a sampler from any iteration on, each index with its iteration and its place in the batch.

    Args:
        batches: a batch sampler of PyTorch or mmdet over a seeded sampler.
        endless: go on to the next pass after the end of one, as iteration-based training does.
    """

    def __init__(self, batches: Any, endless: bool) -> None:
        self.batches = batches
        self.endless = endless
        self.epoch = 0
        self.first = 0

    @property
    def sampler(self) -> Any:
        """The sampler of single indices; mmengine's hooks look for it here."""
        return getattr(self.batches, "sampler", None)

    def start(self, epoch: int, first: int) -> None:
        """Begin the next walk at iteration ``first``; for endless ones ``epoch`` is ignored."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch = 0 if self.endless else self.epoch
        iteration = 0 if self.endless else epoch * len(self.batches)
        while True:
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            before = iteration
            for batch in self.batches:
                if iteration >= self.first:
                    yield [(index, iteration, place) for place, index in enumerate(batch)]
                iteration += 1
            if not self.endless or iteration == before:
                return
            epoch += 1


def resumable_loader(loader: DataLoader, seed: int, endless: bool, bad: BadSamples | None = None) -> DataLoader:
    """The same data as ``loader``, read by a `StepSampler` through a `SeededDataset`.

    With an account of bad samples, batches come as `Collected`, for its ``take``.
    """
    dataset = loader.dataset.dataset if type(loader.dataset) is NamedDataset else loader.dataset
    seeded = SeededDataset(dataset, seed, get_rank(), bad)
    return _like(loader, seeded, StepSampler(loader.batch_sampler, endless), tolerant=bad is not None)


def with_named_errors(loader: DataLoader) -> DataLoader:
    """The same data as ``loader``, through a `NamedDataset`."""
    if isinstance(loader.dataset, NamedDataset) or not hasattr(loader.dataset, "__getitem__"):
        return loader
    return _like(loader, NamedDataset(loader.dataset), loader.batch_sampler)


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """Iterate over a loader; when the block ends early its workers end at once.

    Left to the garbage collector, which may take the workers' queues apart first, each costs five seconds.
    """
    batches = iter(loader)
    try:
        yield batches
    except BaseException:
        shut_down(batches)
        raise
    if not getattr(loader, "persistent_workers", False):
        shut_down(batches)


def shut_down(batches: Any) -> None:
    """End the worker processes of a loader's iterator, if it has any."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


def _like(loader: DataLoader, dataset: Dataset, batch_sampler: Any, tolerant: bool = False) -> DataLoader:
    extra: dict[str, Any] = {}
    if loader.num_workers > 0:
        extra = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=Collate(loader.collate_fn) if tolerant else loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        **extra,
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
