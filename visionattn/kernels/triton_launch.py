"""Launches of Triton kernels: one kernel with its grid, its arguments and its options.

A `Launch` can be run, or compiled ahead of time for a GPU that is not present (`triton_aot`). A `Prepared` launch takes
other tensors in each call; operators keep prepared launches in a `plan_cache` by the layout of their arguments, because
inspecting the arguments takes the host longer than a small map takes the GPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel

__all__ = ["Launch", "Layout", "Pointer", "Prepared", "clear_plans", "layout", "plan_cache"]

PLANS = 512  # per operator and direction
Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, bool]
"""Shape, strides, dtype, and whether the address is a multiple of 16 bytes: what Triton compiles a kernel for."""


@dataclass(frozen=True)
class Pointer:
    """Takes the place of a tensor among the arguments of a launch that is compiled or prepared, but not run."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Launch:
    """One kernel, its grid and its arguments by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int

    @property
    def programs(self) -> int:
        return prod(self.grid)

    def run(self) -> None:
        if self.programs:
            self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)


class Prepared:
    """A launch that is repeated with other tensors of the same layouts.

    The first call compiles the kernel. Later calls pass the arguments to the compiled kernel by position, without the
    inspection of all arguments by Triton.

    Args:
        launch: a launch with pointers or example tensors, which are not kept. In the signature of the kernel, they and
            those that are None must precede all other arguments.
    """

    def __init__(self, launch: Launch) -> None:
        names = list(launch.kernel.arg_names)
        others = [name for name in names if not isinstance(launch.arguments[name], Tensor | Pointer | None)]
        self.tensors = tuple(names[: len(names) - len(others)])
        if names[len(self.tensors) :] != others:
            raise ValueError(f"the tensors must be the first arguments of the kernel, got {names}")
        self.others = {name: launch.arguments[name] for name in names[len(self.tensors) :]}
        self.kernel, self.grid = launch.kernel, launch.grid
        self.options = {"num_warps": launch.warps, "num_stages": launch.stages}
        self._compiled: CompiledKernel | None = None

    def __call__(
        self,
        tensors: Mapping[str, Tensor],
        grid: tuple[int, ...] | None = None,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        """Launch the kernel, unless the grid is empty.

        Args:
            tensors: by the names of the arguments; those that are None may be left out, other names are ignored.
            grid: instead of that of the launch.
            numbers: values by name for some arguments that the kernel is not specialized for (`do_not_specialize`).
        """
        grid = grid or self.grid
        if not prod(grid):
            return
        grid = (*grid, 1, 1)[:3]
        others = self.others if numbers is None else {**self.others, **numbers}
        arguments = [*[tensors.get(name) for name in self.tensors], *others.values()]
        if self._compiled is not None:
            self._compiled[grid](*arguments)
            return
        compiled = self.kernel[grid](*arguments, **self.options)
        if isinstance(compiled, CompiledKernel):  # not in Triton's interpreter
            self._compiled = compiled


_caches: list[Any] = []


def plan_cache(function: Callable) -> Callable:
    """Cache the results of a function of layouts and other hashable arguments, least recently used first out."""
    cached = lru_cache(maxsize=PLANS)(function)
    _caches.append(cached)
    return cached


def clear_plans() -> None:
    """Forget all plans and the compiled kernels that they refer to."""
    for cached in _caches:
        cached.cache_clear()


def layout(x: Tensor) -> Layout:
    """The layout of a tensor."""
    return tuple(x.shape), x.stride(), x.dtype, x.data_ptr() % 16 == 0
