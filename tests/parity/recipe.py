"""Weights and inputs as a function of their names and shapes, and the summary of a result that is stored.

Values come from an integer hash, so that they are the same for every version of PyTorch and NumPy and on every machine.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Recipe", "Result", "differences", "limit", "summarize"]

Result = dict[str, Tensor]
SAMPLES = 512  # elements of a result that are stored


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix the bits of each uint32: a bijection in which every input bit affects every output bit."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return x


def uniform(name: str, shape: Sequence[int]) -> Tensor:
    """Float32 values in [0, 1) that depend on the name and the position alone."""
    count = math.prod(shape)
    bits = _mix(np.arange(count, dtype=np.uint32)) ^ np.uint32(zlib.crc32(name.encode()))
    values = (_mix(bits) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(values).reshape(tuple(shape))


def centered(name: str, shape: Sequence[int]) -> Tensor:
    """Float32 values of mean 0 and variance 1."""
    return (uniform(name, shape) - 0.5) * math.sqrt(12)


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """A parameter, or a running statistic of a batch norm, by its name in the state dict.

    No value is neutral: layer scales, position biases and running statistics all affect the output.
    """
    value, last = centered(name, shape), name.rsplit(".", 1)[-1]
    if last == "running_var":
        return 0.75 + uniform(name, shape)
    if last == "running_mean":
        return 0.1 * value
    if "gamma" in last:
        return 0.3 + 0.1 * value
    if last == "rpb":
        return 0.5 * value
    if len(shape) <= 1:
        return float(last == "weight") + 0.1 * value
    if shape[0] == 1 and len(shape) <= 4 and last != "weight":  # tokens and position embeddings
        return 0.3 * value
    return value / math.sqrt(math.prod(shape[1:]))


class Recipe:
    """Builds modules and inputs in one floating-point type.

    Args:
        dtype: of the parameters and inputs. Their values are those of float32 in either case.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def state(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """A state dict by names and shapes."""
        return {name: weight(name, shape).to(self.dtype) for name, shape in shapes.items()}

    def module(self, module: nn.Module) -> nn.Module:
        """Fill a module in place, and set it to eval mode."""
        learned = {name for name, _ in module.named_parameters()}
        state = {
            name: weight(name, tensor.shape)
            for name, tensor in module.state_dict().items()
            if name in learned or name.endswith(("running_mean", "running_var"))
        }
        module.load_state_dict(state, strict=False)
        return module.to(self.dtype).eval()

    def input(self, name: str, *shape: int, grad: bool = False) -> Tensor:
        """A tensor of mean 0 and variance 1."""
        return centered(name, shape).to(self.dtype).requires_grad_(grad)

    def positive(self, name: str, *shape: int) -> Tensor:
        """A tensor with values in [0, 1)."""
        return uniform(name, shape).to(self.dtype)

    def mask(self, name: str, share: float, *shape: int) -> Tensor:
        """A boolean tensor; `share` of it is True."""
        return uniform(name, shape) < share

    def voxels(self, name: str, share: float, batch: int, shape: tuple[int, int, int]) -> Tensor:
        """int64 ``[N, 4]``: batch, z, y, x of `share` of all cells, in no particular order."""
        coords = self.mask(name, share, batch, *shape).nonzero()
        return coords[uniform(f"{name}.order", (len(coords),)).argsort(stable=True)]

    def gradients(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], module: nn.Module | None = None) -> Result:
        """Gradients of a weighted sum of the outputs: of the inputs, and the norm for each parameter."""
        loss = sum((out * centered(f"grad{i}", out.shape).to(out)).sum() for i, out in enumerate(outputs))
        named = [] if module is None else [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, [*inputs, *(p for _, p in named)], allow_unused=True)
        result = {f"grad of input {i}": g for i, g in enumerate(found[: len(inputs)])}
        if named:
            norms = [torch.zeros((), dtype=self.dtype) if g is None else g.norm() for g in found[len(inputs) :]]
            result["gradient norms"] = torch.stack(norms)
        return result

    def run(self, module: nn.Module | Callable, *inputs: Tensor, grad: bool = False) -> Result:
        """Outputs of a call, and with `grad` the gradients; a list of outputs is numbered."""
        inputs = tuple(x.requires_grad_(grad) if x.is_floating_point() else x for x in inputs)
        with torch.set_grad_enabled(grad):
            outputs = module(*inputs)
            outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            result = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
            if grad:
                differentiable = [x for x in inputs if x.is_floating_point()]
                result |= self.gradients(outputs, differentiable, module if isinstance(module, nn.Module) else None)
        return result


def summarize(tensor: Tensor) -> dict[str, np.ndarray]:
    """What is stored of a result: its shape, two sums, and at most `SAMPLES` elements at a constant stride."""
    flat = tensor.detach().to(torch.float64).flatten()
    stride = -(-flat.numel() // SAMPLES) | 1  # odd, so that not only even columns are stored
    return {
        "shape": np.array(tensor.shape, np.int64),
        "sums": np.array([flat.sum().item(), flat.abs().sum().item()]),
        "values": flat[::stride].to(torch.float32).numpy(),
    }


def differences(tensor: Tensor, stored: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative differences from a stored result: of elements to the largest one, of sums to the sum of magnitudes."""
    found = summarize(tensor)
    if found["shape"].tolist() != stored["shape"].tolist():
        raise AssertionError(f"shape {found['shape'].tolist()}, recorded {stored['shape'].tolist()}")
    if not tensor.numel():
        return {}
    largest, magnitude = np.abs(stored["values"]).max(), stored["sums"][1]
    values = np.abs(found["values"].astype(np.float64) - stored["values"]).max()
    sums = np.abs(found["sums"] - stored["sums"]).max()
    return {"values": float(values / max(largest, 1e-30)), "sums": float(sums / max(magnitude, 1e-30))}


def limit(key: str) -> float:
    """The largest relative difference allowed for a result of this name."""
    return 1e-4 if "grad" in key else 1e-5
