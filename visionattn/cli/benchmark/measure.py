"""Alternating timing and peak memory on any device, and the steps of models that are timed."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity

from visionattn.errors import ConfigError

__all__ = ["MODES", "Setup", "alternate", "make_step", "peak_memory"]

VISIT = 0.02  # minimum seconds per round and step
MODES = ("eager", "compile", "graph")

CPU = torch.device("cpu")
Step = Callable[[], object]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def alternate(steps: Mapping[str, Step], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Time the steps in turn, so that a slow period of the machine affects all of them.

    Returns:
        Milliseconds per call in each round, by the name of the step.
    """
    repeats, times = {}, {name: [] for name in steps}
    for name, step in steps.items():
        step()
        start = _clock(device)
        step()
        repeats[name] = max(1, round(VISIT / max(_clock(device) - start, 1e-6)))
    for _ in range(rounds):
        for name, step in steps.items():
            start = _clock(device)
            for _ in range(repeats[name]):
                step()
            times[name].append((_clock(device) - start) / repeats[name] * 1e3)
    return times


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what is written to the standard error, to which the profiler logs from C++."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_memory(step: Step, device: torch.device) -> float:
    """Return the memory in MiB that PyTorch allocates at most during a call, beyond what is allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with _quiet(), torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


@dataclass(frozen=True)
class Setup:
    """A model and how it is run.

    Attributes:
        name: name of a timm model, those of this package included.
        mode: one of `MODES`; ``"graph"`` replays a CUDA graph of the eager model.
        train: a training step (forward, cross entropy, backward, AdamW) rather than inference.
        batch: images per call.
        size: side of the square images; None for that of the model's cfg.
        dtype: of weights and images in inference; in training, that of autocast.
        device: CPU or CUDA device.
    """

    name: str
    mode: str = "eager"
    train: bool = False
    batch: int = 1
    size: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape ``[batch, channels, height, width]`` of the images."""
        import timm

        channels, height, width = timm.models.get_pretrained_cfg(self.name).input_size
        return self.batch, channels, self.size or height, self.size or width


def make_step(setup: Setup) -> Step:
    """Create the model with random weights, and return a call that runs it on one batch.

    Raises:
        ConfigError: an unknown mode, or a CUDA graph on another device.
    """
    import timm

    if setup.mode not in MODES:
        raise ConfigError(f"`modes` must be of {', '.join(MODES)}, got {setup.mode!r}")
    if setup.mode == "graph" and setup.device.type != "cuda":
        raise ConfigError(f"CUDA graphs need a CUDA `device`, got {setup.device}")
    torch.manual_seed(0)
    channels = setup.input_shape[1]
    model = timm.create_model(setup.name, in_chans=channels)
    if setup.size is not None and hasattr(model, "set_input_size"):  # vision transformers check the size of images
        model.set_input_size((setup.size, setup.size))
    model.train(setup.train).to(setup.device)
    images = torch.randn(setup.input_shape, device=setup.device)
    if setup.train:
        return _training(model, images, setup)
    model, images = model.to(setup.dtype), images.to(setup.dtype)
    call = torch.compile(model, dynamic=False) if setup.mode == "compile" else model

    def step() -> object:
        with torch.inference_mode():
            return call(images)

    return _captured(step) if setup.mode == "graph" else step


def _training(model: nn.Module, images: torch.Tensor, setup: Setup) -> Step:
    captured = setup.mode == "graph"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, capturable=captured)
    labels = torch.zeros(setup.batch, dtype=torch.long, device=setup.device)
    call = torch.compile(model, dynamic=False) if setup.mode == "compile" else model
    half, nothing = setup.dtype in (torch.bfloat16, torch.float16), contextlib.nullcontext()

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        # Autocast caches weights, which a graph must not share between replays.
        with torch.autocast(setup.device.type, setup.dtype, cache_enabled=not captured) if half else nothing:
            loss = nn.functional.cross_entropy(call(images).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return _captured(step) if captured else step


def _captured(step: Step) -> Step:
    """Return the replay of a CUDA graph of the call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
