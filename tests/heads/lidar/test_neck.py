"""The cascade of dense encoder-decoders."""

import pytest
import torch
import torch.nn.functional as F

from visionattn.heads.lidar.neck import CascadeDED


@pytest.mark.parametrize("size", [(8, 12), (13, 7), (1, 1), (16, 3)])
def test_any_size_is_kept(size):
    net = CascadeDED(5, 6, num_units=2).eval()
    assert net(torch.randn(2, 5, *size)).shape == (2, 6, *size)


def test_names_are_hednets():
    net = CascadeDED(6, 6, num_units=1)
    names = {n for n, _ in net.named_parameters()}
    block = {f"{c}.weight" for c in ("conv1", "conv2", "bn1", "bn2")} | {"bn1.bias", "bn2.bias"}
    want = {f"layers.0.encoder.0.{i}.{n}" for i in range(2) for n in block}
    for level in (1, 2):
        want |= {f"layers.0.encoder.{level}.{i}.{n}" for i in range(2) for n in block}
        down = f"layers.0.encoder.{level}.0.downsample_layer"
        want |= {f"{down}.0.weight", f"{down}.1.weight", f"{down}.1.bias"}
    for level in range(2):
        want |= {f"layers.0.decoder.{level}.0.weight"}
        want |= {f"layers.0.decoder.{level}.1.{n}" for n in ("weight", "bias")}
        want |= {f"layers.0.decoder_norm.{level}.{n}" for n in ("weight", "bias")}
    assert names == want
    assert any("encoder.0.0.downsample_layer" in n for n in CascadeDED(5, 6, num_units=1).state_dict())


def test_published_size():
    convs, square, norms = 12 * 9, 128 * 128, 12 + 2 + 2 + 2
    unit = (convs + 2 + 2 * 4) * square + norms * 2 * 128
    assert sum(p.numel() for p in CascadeDED().parameters()) == 4 * unit


def test_one_unit_step_by_step():
    torch.manual_seed(0)
    net = CascadeDED(4, 4, num_units=1, blocks=(1, 0), strides=(1, 2)).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    state = net.state_dict()
    x = torch.randn(1, 4, 7, 6)

    def norm(y, name):
        mean, var, w, b = (
            state[f"{name}.{n}"].view(-1, 1, 1) for n in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-3).sqrt() * w + b

    def block(y, name, stride):
        z = F.relu(norm(F.conv2d(y, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
        z = norm(F.conv2d(z, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stride > 1:
            down = f"{name}.downsample_layer"
            y = norm(F.conv2d(y, state[f"{down}.0.weight"], stride=stride), f"{down}.1")
        return F.relu(y + z)

    top = block(x, "layers.0.encoder.0.0", 1)
    low = block(top, "layers.0.encoder.1.0", 2)
    up = F.conv_transpose2d(low, state["layers.0.decoder.0.0.weight"], stride=2)
    up = F.relu(norm(up, "layers.0.decoder.0.1"))[..., :7, :6]
    want = norm(up + top, "layers.0.decoder_norm.0")
    assert torch.allclose(net(x), want, atol=1e-5)


def test_gradients_reach_everything():
    net = CascadeDED(3, 4, num_units=2)
    net(torch.randn(2, 3, 9, 8)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`num_units` must be at least 1, got 0"):
        CascadeDED(num_units=0)
    with pytest.raises(ValueError, match="one number for each level"):
        CascadeDED(blocks=(2, 1))
    with pytest.raises(ValueError, match="must start with 1"):
        CascadeDED(strides=(2, 2, 2))
