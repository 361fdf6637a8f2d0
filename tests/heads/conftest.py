"""Weights that recorded outputs name by shape only."""

import math
import zlib

import pytest
import torch


@pytest.fixture(scope="session")
def keyed_state():
    """Tensors as a function of their names and shapes."""

    def build(shapes: dict) -> dict[str, torch.Tensor]:
        state = {}
        for name, shape in shapes.items():
            shape, last = tuple(shape), name.rsplit(".", 1)[-1]
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if last == "num_batches_tracked":
                state[name] = torch.zeros(shape, dtype=torch.long)
            elif last == "running_var":
                state[name] = 0.5 + torch.rand(shape, generator=generator)
            else:
                value = torch.randn(shape, generator=generator)
                if last == "running_mean":
                    state[name] = 0.1 * value
                elif len(shape) <= 1:
                    state[name] = float(last == "weight") + 0.05 * value
                else:
                    state[name] = value / math.sqrt(math.prod(shape[1:]))
        return state

    return build
