"""Timing on a GPU for the benchmarks: CUDA events around many calls, CUDA graphs, peak memory, copy bandwidth."""

import time
from collections.abc import Callable

import torch

__all__ = ["Clock"]


class Clock:
    """Times calls on the device: CUDA events, or the wall clock."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"

    def __call__(self, step: Callable[[], object], repeats: int) -> float:
        """Milliseconds per call."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            return (time.perf_counter() - start) / repeats * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            step()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / repeats

    def alternate(self, steps: dict[str, Callable], rounds: int, milliseconds: float = 20.0) -> dict[str, list[float]]:
        repeats = {}
        for name, step in steps.items():
            self(step, 2)
            repeats[name] = min(max(1, round(milliseconds / max(self(step, 1), 1e-3))), 1000)
        times = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                times[name].append(self(step, repeats[name]))
        return times

    def peak(self, step: Callable) -> float:
        """MiB allocated at most during a call, beyond what was there."""
        if not self.cuda:
            return float("nan")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def bandwidth(self) -> float:
        """Bytes per second of a large copy, reads and writes counted."""
        size = 1 << (29 if self.cuda else 22)
        source = torch.empty(size, dtype=torch.uint8, device="cuda" if self.cuda else "cpu")
        target = torch.empty_like(source)
        return 2 * size / (min(self(lambda: target.copy_(source), 10) for _ in range(5)) * 1e-3)

    def graph(self, step: Callable) -> Callable[[], None] | None:
        """The call as a CUDA graph, whose replay needs no time on the host; None if it cannot be captured."""
        if not self.cuda:
            return None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except RuntimeError:  # such as a peer that synchronizes
            torch.cuda.synchronize()
            return None
        return graph.replay

    def compare(self, steps: dict[str, Callable], rounds: int) -> dict[str, dict[str, list[float]]]:
        """Milliseconds of each visit, by ``"call"`` and, where it can be captured, ``"graph"``, and contestant."""
        graphs = {name: graph for name, step in steps.items() if (graph := self.graph(step)) is not None}
        times = {"call": self.alternate(steps, rounds)}
        if graphs:
            times["graph"] = self.alternate(graphs, rounds)
        return times
