"""Random numbers as a function of seed and iteration: a resumed run equals an uninterrupted one bit for bit.

No random state is saved. The sample order comes from the seeded samplers of mmengine, which `StepSampler` advances to
the current iteration without reading images. Each sample is augmented with generators seeded from (seed, rank,
iteration, position in the batch), and before each iteration the generators that the model uses are seeded from (seed,
rank, iteration). The result does not depend on the number of data workers.
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
from visionattn.engine.train.processes import SignalSafeDataLoader
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

MODEL, SAMPLE = 1, 2  # separate streams for dropout and augmentation


def words(*key: int) -> tuple[int, int, int, int]:
    """Derive four independent 32-bit seeds from non-negative integers."""
    return tuple(int(w) for w in np.random.SeedSequence(key).generate_state(4))  # type: ignore[return-value]


def seed_iteration(seed: int, iteration: int, rank: int | None = None) -> None:
    """Seed Python, NumPy and PyTorch (all devices) for one training iteration.

    Args:
        seed: seed of the run.
        iteration: number of the iteration, from 0.
        rank: rank of the process; by default the current one.
    """
    first, second, third, fourth = words(seed, MODEL, get_rank() if rank is None else rank, iteration)
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed((third << 32 | fourth) & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def _seeded(key: tuple[int, ...], generators: list[Any]) -> Iterator[None]:
    """Seed the CPU generators and the generators of albumentations from ``key``; restore the former afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second, third, fourth = words(*key)
    random.seed(first)
    np.random.seed(second)
    torch.random.default_generator.manual_seed(third)
    for compose in generators:  # albumentations uses its own generators
        compose.set_random_state(np.random.default_rng(fourth), random.Random(fourth))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class NamedDataset(Dataset):
    """A dataset whose errors contain the name of the image.

    Attributes are read from and written to the wrapped dataset, since hooks read ``metainfo`` and replace pipelines.

    Args:
        dataset: the wrapped dataset.
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
        except Exception:  # not all dataset wrappers have this method
            return f"item {index} of {type(self.dataset).__name__}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # during unpickling in a data worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


class SeededDataset(NamedDataset):
    """A dataset indexed with ``(index, iteration, position)``, whose augmentations only depend on this key.

    Args:
        dataset: the wrapped dataset.
        seed: seed of the run.
        rank: rank of the process.
        bad: if given, unreadable samples are returned as `BadSample` instead of raising an error.
    """

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
    """Yield the outermost albumentations objects in datasets, pipelines and transforms."""
    if id(part) in seen or isinstance(part, (str, bytes, int, float, np.ndarray, torch.Tensor, type(None))):
        return
    seen.add(id(part))
    if hasattr(part, "set_random_state") and hasattr(part, "py_random"):
        yield part
    elif isinstance(part, (list, tuple)):
        if len(part) < 100:  # longer lists contain samples, not transforms
            for item in part:
                yield from _albumentations(item, seen)
    elif hasattr(part, "__dict__") and not isinstance(part, type):
        for value in vars(part).values():
            if isinstance(value, (list, tuple)) or hasattr(value, "__dict__"):
                yield from _albumentations(value, seen)


class StepSampler:
    """The batches of a batch sampler, starting at any iteration.

    Each batch is a list of ``(index, iteration, position in the batch)``.

    Args:
        batches: a batch sampler of PyTorch or mmdet that uses a seeded sampler.
        endless: repeat the data endlessly, for iteration-based training.
    """

    def __init__(self, batches: Any, endless: bool) -> None:
        self.batches = batches
        self.endless = endless
        self.epoch = 0
        self.first = 0

    @property
    def sampler(self) -> Any:
        """The sampler of the batch sampler, which hooks of mmengine access."""
        return getattr(self.batches, "sampler", None)

    def start(self, epoch: int, first: int) -> None:
        """Start the next iteration over the batches at a given position.

        Args:
            epoch: number of the epoch, from 0; not used if ``endless``.
            first: number of the first iteration, counted from the start of training.
        """
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
    """Return a dataloader for the same data that uses `StepSampler` and `SeededDataset`.

    Args:
        loader: the dataloader.
        seed: seed of the run.
        endless: repeat the data endlessly.
        bad: if given, unreadable samples are skipped and batches are `Collected`, for `BadSamples.take`.
    """
    dataset = loader.dataset.dataset if type(loader.dataset) is NamedDataset else loader.dataset
    seeded = SeededDataset(dataset, seed, get_rank(), bad)
    return _like(loader, seeded, StepSampler(loader.batch_sampler, endless), tolerant=bad is not None)


def with_named_errors(loader: DataLoader) -> DataLoader:
    """Return a dataloader for the same data that uses `NamedDataset`."""
    if isinstance(loader.dataset, NamedDataset) or not hasattr(loader.dataset, "__getitem__"):
        return loader
    return _like(loader, NamedDataset(loader.dataset), loader.batch_sampler)


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """Yield an iterator over a dataloader, and stop its worker processes at the end of the block.

    Otherwise the garbage collector may delete the queues of the workers first, and each worker takes five seconds to
    exit.
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
    """Stop the worker processes of a dataloader iterator, if it has any."""
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
    return SignalSafeDataLoader(
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
