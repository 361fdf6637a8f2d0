"""Agent attention: recordings of the authors' modules, and its equations written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visionattn.layers import AgentAttention


def recorded(record: dict) -> AgentAttention:
    options = record["meta"]["kwargs"]
    window = options.get("window_size", options.get("window"))
    return AgentAttention(
        options["dim"],
        options["num_heads"],
        window,
        options["agent_num"],
        num_prefix_tokens=int("ac_bias" in record["state_dict"]),
        qkv_bias="qkv.bias" in record["state_dict"],
    )


def test_published_modules(shared_dir):
    """Outputs and all gradients, from the published names, loaded strictly."""
    files = sorted((shared_dir / "parity/modules").glob("agent_attn_*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        layer = recorded(record)
        layer.load_state_dict(record["state_dict"])
        x = record["inputs"]["x"].clone().requires_grad_()
        y = layer(x)
        torch.testing.assert_close(y, record["outputs"]["y"], rtol=1e-5, atol=1e-5)
        y.backward(record["inputs"]["grad_out"])
        torch.testing.assert_close(x.grad, record["grads"].pop("x"), rtol=1e-4, atol=1e-4)
        for name, gradient in record["grads"].items():
            found = layer.get_parameter(name.removeprefix("param:")).grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


def resampling(length: int, new: int) -> Tensor:
    """The matrix of linear interpolation between centers of cells, constant beyond the outer ones."""
    out = torch.zeros(new, length, dtype=torch.double)
    for i in range(new):
        place = min(max((i + 0.5) * length / new - 0.5, 0), length - 1)
        left = min(int(place), length - 1)
        right = min(left + 1, length - 1)
        out[i, left] += 1 - (place - left)
        out[i, right] += place - left
    return out


def by_definition(layer: AgentAttention, x: Tensor, height: int, width: int) -> Tensor:
    prefix, (rows, columns) = layer.num_prefix_tokens, layer.pool_size
    q, k, v = layer.qkv(x).split(layer.dim, -1)
    cells = q[:, prefix:].view(len(x), height, width, layer.dim)
    agents = []
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            agents.append(cells[:, top:bottom, left:right].mean((1, 2)))
    agents = torch.stack(agents, 1)
    tall, wide = resampling(layer.input_size[0], height), resampling(layer.input_size[1], width)
    coarse = (resampling(7, height), resampling(7, width))
    to_tokens = torch.einsum("haij,yi,xj->hayx", layer.an_bias, *coarse)
    to_tokens = to_tokens + torch.einsum("hai,yi->hay", layer.ah_bias[0, ..., 0], tall)[..., None]
    to_tokens = (to_tokens + torch.einsum("haj,xj->hax", layer.aw_bias[0, :, :, 0], wide)[:, :, None]).flatten(2)
    to_agents = torch.einsum("haij,yi,xj->hyxa", layer.na_bias, *coarse)
    to_agents = to_agents + torch.einsum("hia,yi->hya", layer.ha_bias[0, :, :, 0], tall)[:, :, None]
    to_agents = (to_agents + torch.einsum("hja,xj->hxa", layer.wa_bias[0, :, 0], wide)[:, None]).flatten(1, 2)
    if prefix:
        to_tokens = torch.cat([layer.ac_bias[0], to_tokens], 2)
        to_agents = torch.cat([layer.ca_bias[0], to_agents], 1)
    spread = torch.kron(*(resampling(a, b) for a, b in zip(layer.table_size, layer.pool_size, strict=True)))
    to_tokens, to_agents = torch.einsum("ba,han->hbn", spread, to_tokens), to_agents @ spread.T
    out = torch.empty_like(x)
    d = layer.head_dim
    for h in range(layer.num_heads):
        part = slice(h * d, (h + 1) * d)
        gathered = (agents[..., part] @ k[..., part].mT / d**0.5 + to_tokens[h]).softmax(-1) @ v[..., part]
        weights = (q[..., part] @ agents[..., part].mT / d**0.5 + to_agents[h]).softmax(-1)
        out[..., part] = weights @ gathered
    local = F.conv2d(
        v[:, prefix:].transpose(1, 2).reshape(len(x), -1, height, width),
        layer.dwc.weight,
        layer.dwc.bias,
        padding=1,
        groups=layer.dim,
    )
    out[:, prefix:] += local.flatten(2).transpose(1, 2)
    return layer.proj(out)


@pytest.mark.parametrize("prefixes", [0, 2])
@pytest.mark.parametrize("shape", [None, (6, 5), 2])
@pytest.mark.parametrize("size", [(5, 8), (9, 3), (2, 2), (16, 11)])
def test_is_its_definition(size, shape, prefixes):
    """With biases for 5 x 8 cells and 3 x 4 agents, on that map and others, also with fewer cells than agents.

    With other agents than those of the biases, as in the published detectors, the biases are interpolated.
    """
    torch.manual_seed(0)
    options = {"num_prefix_tokens": prefixes, "qkv_bias": True, "agent_shape": shape}
    layer = AgentAttention(12, 3, (5, 8), (3, 4), **options).double()
    assert layer.pool_size == {None: (3, 4), 2: (2, 2)}.get(shape, shape)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, prefixes + size[0] * size[1], 12, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, size=size), by_definition(layer, x, *size))


def test_biases_of_another_size_are_the_table_where_sizes_agree():
    layer = AgentAttention(8, 2, (3, 5), 4)
    to_tokens, to_agents = layer.biases(3, 5)
    assert to_tokens.shape == (1, 2, 4, 15)
    assert to_agents.shape == (1, 2, 15, 4)
    with torch.no_grad():
        layer.an_bias.zero_()
        layer.na_bias.zero_()
    torch.testing.assert_close(layer.biases(3, 5)[0].view(1, 2, 4, 3, 5), layer.ah_bias + layer.aw_bias)
    torch.testing.assert_close(layer.biases(3, 5)[1].view(1, 2, 3, 5, 4), layer.ha_bias + layer.wa_bias)


def test_agents():
    assert AgentAttention(8, 2, agent_num=9).pool_size == (3, 3)
    assert AgentAttention(8, 2, agent_num=(2, 5)).an_bias.shape == (2, 10, 7, 7)
    for bad in (8, 0, -4):
        with pytest.raises(ValueError, match=f"`agent_num` must be a square number or .*, got {bad}"):
            AgentAttention(8, 2, agent_num=bad)
    with pytest.raises(ValueError, match=r"`agent_shape` must be .*, got \(3, 0\)"):
        AgentAttention(8, 2, agent_shape=(3, 0))
    with pytest.raises(ValueError, match=r"`agent_num` must be .*, got \(0, 3\)"):
        AgentAttention(8, 2, agent_num=(0, 3))


def test_cost_is_linear():
    """Four times the tokens: four times the products of matrices."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = AgentAttention(16, 2, agent_num=9).eval()
    counts = []
    for side in (16, 32):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(torch.zeros(1, 16, side, side))
        counts.append(counter.get_total_flops())
    assert counts[1] == 4 * counts[0]
