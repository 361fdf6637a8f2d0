"""Subspace attention: recordings of the authors' module in both modes, and its equations."""

import copy

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from visionattn.layers import ULSAM


def test_published_modules(shared_dir):
    """Outputs, gradients and, of training, the running statistics afterwards."""
    files = sorted((shared_dir / "parity/modules").glob("ulsam_*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        options = record["meta"]["kwargs"]
        layer = ULSAM(options["nin"], options["num_splits"]).train(record["meta"]["training"])
        layer.load_state_dict(record["state_dict"])
        x = record["inputs"]["x"].clone().requires_grad_()
        y = layer(x)
        torch.testing.assert_close(y, record["outputs"]["y"], rtol=1e-5, atol=1e-5)
        for name, tensor in record["outputs"].get("state_after", record["state_dict"]).items():
            torch.testing.assert_close(layer.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)
        y.backward(record["inputs"]["grad_out"])
        torch.testing.assert_close(x.grad, record["grads"].pop("x"), rtol=1e-4, atol=1e-4)
        for name, gradient in record["grads"].items():
            found = layer.get_parameter(name.removeprefix("param:")).grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


def normed(x: Tensor, norm: torch.nn.BatchNorm2d, training: bool) -> Tensor:
    mean = x.mean((0, 2, 3)) if training else norm.running_mean
    variance = x.var((0, 2, 3), unbiased=False) if training else norm.running_var
    scale = norm.weight / (variance + 1e-5).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(3, 7), (6, 6)])
def test_is_its_definition(size, training):
    torch.manual_seed(0)
    layer = ULSAM(12, 3).double().train(training)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 2)
    x = torch.randn(2, 12, *size, dtype=torch.double)
    expected = []
    with torch.no_grad():
        for number, part in enumerate(layer.subspaces):
            group = x[:, 4 * number : 4 * number + 4]
            weight = part.conv_dws.weight.view(4, 1, 1)
            a = normed(group * weight + part.conv_dws.bias[:, None, None], part.bn_dws, training).relu()
            pooled = torch.empty_like(a)
            for i in range(size[0]):
                for j in range(size[1]):
                    pooled[..., i, j] = a[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].amax((2, 3))
            logits = (pooled * part.conv_point.weight.view(4, 1, 1)).sum(1, keepdim=True) + part.conv_point.bias
            weights = normed(logits, part.bn_point, training).relu().flatten(1).softmax(1).view(2, 1, *size)
            expected.append(group + group * weights)
    torch.testing.assert_close(layer(x), torch.cat(expected, 1))


def test_statistics_are_nearly_those_of_the_last_batch():
    layer = ULSAM(4, 1)
    layer.subspaces[0].conv_dws.weight.data.fill_(1)
    layer.subspaces[0].conv_dws.bias.data.zero_()
    layer(torch.full((2, 4, 3, 3), 5.0))
    torch.testing.assert_close(layer.subspaces[0].bn_dws.running_mean, torch.full((4,), 0.9 * 5))
    slow = ULSAM(4, 1, momentum=0.1)
    assert slow.subspaces[0].bn_point.momentum == 0.1


@pytest.mark.parametrize("size", [(4, 3), (7, 5), (1, 8)])
def test_any_size_and_gradients(size):
    torch.manual_seed(0)
    layer = ULSAM(8, 2)
    x = torch.randn(2, 8, *size, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    (y * torch.randn_like(y)).sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    reached = [name for name, p in layer.named_parameters() if p.grad.abs().max() > 1e-7]
    # a bias has no effect if a batch norm follows, also behind maxima, where they are positive, and 1x1 convolutions
    assert set(dict(layer.named_parameters())) - set(reached) <= {
        f"subspaces.{i}.{part}.bias" for i in range(2) for part in ("conv_dws", "bn_dws", "conv_point")
    }


def test_half_precision():
    torch.manual_seed(0)
    layer = ULSAM(8, 2).eval()
    x = torch.randn(2, 8, 5, 6)
    expected = layer(x)
    found = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.03
    with torch.autocast("cpu", torch.bfloat16):
        assert (layer(x).float() - expected).abs().max() < 0.03


def test_compile_and_export():
    layer = ULSAM(8, 2)
    x = torch.randn(2, 8, 5, 6)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(torch.compile(twin, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(twin.state_dict(), layer.state_dict())
    layer.eval()
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    program = torch.export.export(layer, (x,), dynamic_shapes=dynamic).module()
    other = torch.randn(3, 8, 7, 4)
    torch.testing.assert_close(program(other), layer(other))


def test_errors():
    for splits in (0, 3):
        with pytest.raises(ValueError, match=f"`num_splits` must be at least 1 and divide `dim`=8, got {splits}"):
            ULSAM(8, splits)
    for bad in (torch.zeros(1, 4, 3, 3), torch.zeros(1, 8, 9)):
        with pytest.raises(ValueError, match=r"`x` must have shape \[B, 8, H, W\]"):
            ULSAM(8)(bad)
