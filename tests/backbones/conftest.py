"""The recorded outputs and gradients of the published models, and the check of a model against them."""

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Parity:
    """Reads fixtures from the development data; ``fill`` rebuilds their weights and inputs."""

    def __init__(self, root, fill: ModuleType) -> None:
        self.root, self.fill = root, fill

    def read(self, name: str) -> dict[str, Any]:
        fixture = torch.load(self.root / name, weights_only=True)
        weights = self.fill.official_state_dict(fixture)
        assert self.fill.state_dict_sha256(weights) == fixture["weights_sha256"]
        return fixture

    def weights(self, fixture: dict[str, Any]) -> dict[str, Tensor]:
        return self.fill.official_state_dict(fixture)

    def check(self, fixture: dict[str, Any], model: nn.Module, prefix: str = "") -> None:
        """Outputs, input gradient and norm of each parameter's gradient; `prefix` is before our names."""
        model.eval()
        x = self.fill.fixture_input(fixture).requires_grad_()
        outputs = model(x)
        outputs = [outputs] if torch.is_tensor(outputs) else list(outputs)
        assert len(outputs) == len(fixture["outputs"])
        stride = fixture.get("output_stride", 1)
        for out, expected in zip(outputs, fixture["outputs"], strict=True):
            out = out[..., ::stride, ::stride] if stride > 1 else out
            assert out.shape == expected.shape
            assert (out - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
        assert sum(p.numel() for p in model.parameters()) == fixture["n_params"]
        if not any(key.startswith("grad") for key in fixture):
            return
        self.fill.loss(outputs).backward()
        if "grad_input" in fixture:
            _close(x.grad, fixture["grad_input"], "input")
        if "grad_input_sub37" in fixture:
            _close(x.grad.flatten()[::37], fixture["grad_input_sub37"], "input")
        parameters = {name.removeprefix(prefix): p for name, p in model.named_parameters()}
        for name, norm in fixture.get("grad_norms", {}).items():
            if norm is not None:
                _close(parameters[name].grad.norm(), torch.as_tensor(norm), name)


def _close(actual: Tensor, expected: Tensor, name: str) -> None:
    bound = 1e-4 * max(1.0, expected.abs().max().item())
    assert (actual - expected).abs().max() <= bound, name


@pytest.fixture(scope="session")
def parity(shared_dir) -> Parity:
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    return Parity(shared_dir / "parity", fill)
