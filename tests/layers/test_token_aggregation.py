"""Token aggregation and local region attention: recordings of the authors' code, and their definitions."""

import importlib.util
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from visionattn.layers.token_aggregation import (
    LocalRegionAttention,
    TokenAggregationBlock,
    grouped_attention,
    reversed_extension,
)


def recorded(shared_dir, pattern):
    """The recordings, and the module with their recipes."""
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity/fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    files = sorted((shared_dir / "parity/catanet").glob(pattern))
    assert files
    return [torch.load(file, weights_only=True) for file in files], fill


def check(record, fill, module):
    weights = fill.official_state_dict(record)
    assert fill.state_dict_sha256(weights) == record["weights_sha256"]
    if "initted" in record["meta"]:
        weights["initted"] = torch.tensor(record["meta"]["initted"])
    module.load_state_dict(weights)
    module.train(record["meta"]["training"])
    x = fill.fixture_input(record).requires_grad_()
    y = module(x)
    largest = float(record["outputs"][0].abs().max())
    torch.testing.assert_close(y, record["outputs"][0], rtol=0, atol=1e-5 * max(1, largest))
    if "means_after" in record:
        torch.testing.assert_close(module.means, record["means_after"], rtol=0, atol=1e-6)
        assert bool(module.initted)
    fill.loss([y]).backward()
    torch.testing.assert_close(x.grad.flatten()[::37], record["grad_input_sub37"], rtol=1e-4, atol=1e-4)
    norms = {name: float(p.grad.norm()) for name, p in module.named_parameters()}
    assert norms == pytest.approx(record["grad_norms"], rel=1e-4)


def test_recorded_aggregation(shared_dir):
    records, fill = recorded(shared_dir, "catanet_tab_*.pt")
    for record in records:
        c = record["meta"]["cfg"]
        sizes = (c["num_tokens"], c["group_size"], c["n_iter"])
        check(record, fill, TokenAggregationBlock(c["dim"], c["qk_dim"], c["mlp_dim"], c["heads"], *sizes))


def test_recorded_local_attention(shared_dir):
    records, fill = recorded(shared_dir, "catanet_lrsa_*.pt")
    for record in records:
        c = record["meta"]["cfg"]
        arguments = (c["dim"], c["qk_dim"], c["mlp_dim"], c["heads"], c["patch_size"])
        check(record, fill, LocalRegionAttention(*arguments, overlap="published"))


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_grouped_attention(backend):
    """Each group sees its own keys and those of the next group, with values of another width than queries."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 20, 3, 5, requires_grad=True) for _ in range(3))
    out = grouped_attention(q, k, v, 4, 0.3, backend)
    parts = []
    for group in range(4):
        keys = slice(4 * group, 4 * group + 8)
        scores = 0.3 * torch.einsum("bqhd,bkhd->bhqk", q[:, 4 * group : 4 * group + 4], k[:, keys])
        parts.append(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v[:, keys]))
    expected = torch.cat(parts, 1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(out.square().sum(), (q, k, v))
    for one, other in zip(found, torch.autograd.grad(expected.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_reversed_extension():
    assert reversed_extension(4, 6).tolist() == [0, 1, 2, 3, 3, 2]
    assert reversed_extension(3, 9).tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    with pytest.raises(ValueError, match="`total` must be at most 9 for 3 tokens, got 10"):
        reversed_extension(3, 10)


def block(**changes):
    torch.manual_seed(0)
    module = TokenAggregationBlock(8, 8, 16, 2, **({"centers": 3, "group_size": 4} | changes)).eval()
    module.initted.fill_(True)
    return module


@pytest.mark.parametrize("height", [1, 3, 5, 7])  # fewer tokens than a group, and up to 1.5 groups, too
def test_small_maps_by_definition(height):
    module, x = block(), torch.randn(2, 8, height, 1)
    tokens = module.norm(x.flatten(2).transpose(1, 2))
    count = tokens.shape[1]
    size = min(count, 4)
    weights = {name: layer.weight for name, layer in module.iasa_attn.named_children()}
    rows = []
    for t in tokens:
        label = (F.normalize(t, dim=-1) @ F.normalize(module.means, dim=-1).T).argmax(-1)
        order = sorted(range(count), key=lambda i: int(label[i]))  # stable
        longer = [order[i] for i in (*range(count), *range(count)[::-1], *range(count))]
        out = torch.zeros_like(t)
        for position, token in enumerate(order):
            group = position // size * size
            keys = t[longer[group : group + 2 * size]]
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                q = t[token] @ weights["to_q"][part].T
                for source, layers in ((keys, module.iasa_attn), (module.means, module.irca_attn)):
                    scores = (source @ layers.to_k.weight[part].T) @ q / 2
                    out[token, part] += scores.softmax(0) @ (source @ layers.to_v.weight[part].T)
        rows.append(out @ weights["proj"].T @ module.conv1x1.weight[..., 0, 0].T)
    torch.testing.assert_close(module._attention(tokens), torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_equally_similar_tokens_keep_their_order():
    """All tokens of a flat map belong to one center, so that its groups are the rows of the map."""
    module = block(group_size=8)
    flat = torch.ones(1, 8, 8, 8) + torch.arange(8.0).view(1, 8, 1, 1)
    twice = [module(flat) for _ in range(2)]
    assert torch.equal(*twice)
    changed = flat.clone()
    changed[0, 0, 1, 2] += 1e-3  # the same center: only its group, row 1, and the one before it change
    difference = (module._attention(_tokens(module, changed)) - module._attention(_tokens(module, flat)))[0].abs()
    rows = difference.sum(1).view(8, 8).sum(1)
    assert (rows[:2] > 1e-7).all()
    assert (rows[2:] == 0).all()


def _tokens(module, x):
    return module.norm(x.flatten(2).transpose(1, 2))


def test_centers_of_training():
    """The first batch sets the centers; later ones move them by a thousandth; empty clusters keep their center."""
    module = block(iterations=3).train()
    module.initted.fill_(False)
    x = torch.randn(2, 8, 6, 6)
    module(x)
    first = module.means.clone()
    torch.testing.assert_close(first.norm(dim=1), torch.ones(3))
    module(torch.randn(2, 8, 6, 6))
    change = (module.means - first).norm(dim=1)
    assert ((change > 0) & (change <= 2e-3 + 1e-6)).all()
    with torch.no_grad():
        module.means.copy_(torch.stack([first[0], -first[0], -first[0]]))  # the last two are never the most similar
    found = module._cluster(F.normalize(first[:1].expand(1, 9, 8) + 0.01 * torch.randn(1, 9, 8), dim=-1), module.means)
    torch.testing.assert_close(found[1:], F.normalize(module.means[1:], dim=-1))


def test_one_center_per_token_or_more_is_an_error():
    with pytest.raises(ValueError, match="must be at most"):
        block(centers=20).train().requires_grad_(False)._chunk_means(torch.randn(1, 4, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "`dim` and `qk_dim` must be multiples of `heads`=3, got 8 and 8"),
        ({"centers": 0}, "`centers` must be at least 1, got 0"),
        ({"group_size": 0}, "`group_size` must be at least 1, got 0"),
        ({"iterations": 0}, "`iterations` must be at least 1, got 0"),
    ],
)
def test_arguments_of_aggregation(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenAggregationBlock(8, 8, 16, **changes)


# --- windows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["mean", "published"])
@pytest.mark.parametrize("size", [(5, 5), (5, 9), (9, 12), (11, 6)])
def test_windows_by_definition(size, overlap):
    """Every size of overlap; three windows share a row where the last one starts one row after another."""
    torch.manual_seed(0)
    module = LocalRegionAttention(4, 4, 8, 2, window=5, overlap=overlap)
    x = torch.randn(1, 4, *size)
    starts = [sorted({min(s, side - 5) for s in range(0, side - 5 + 3, 3)}) for side in size]
    attention, norm = module.layer[0].fn, module.layer[0].norm
    total, count = torch.zeros(*size, 4), torch.zeros(*size, 1)
    for y in starts[0]:
        for z in starts[1]:
            window = x[0].permute(1, 2, 0)[y : y + 5, z : z + 5].reshape(25, 4)
            q, k, v = (
                layer(norm(window)).view(25, 2, 2).transpose(0, 1)
                for layer in (attention.to_q, attention.to_k, attention.to_v)
            )
            out = ((q @ k.transpose(1, 2) * 2**-0.5).softmax(-1) @ v).transpose(0, 1).reshape(25, 4)
            total[y : y + 5, z : z + 5] += (window + attention.proj(out)).view(5, 5, 4)
            count[y : y + 5, z : z + 5] += 1
    expected = total / count
    if overlap == "published":  # a third window halves the sum once more: 1/4 in place of 1/3
        for axis, places in enumerate(starts):
            shared = torch.tensor([sum(s <= place < s + 5 for s in places) for place in range(size[axis])])
            factor = torch.where(shared == 3, 0.75, 1.0)
            expected = expected * (factor.view(-1, 1, 1) if axis == 0 else factor.view(1, -1, 1))
    assert (count.max() > 2) == (max(size) > 5)
    expected = expected[None]
    expected = expected + module.layer[1].fn(module.layer[1].norm(expected))
    torch.testing.assert_close(module(x), expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def test_three_windows_are_in_the_cases_above():
    _, weight, total = LocalRegionAttention(4, 4, 8, 2, 5, "published")._axis(9, torch.device("cpu"))
    assert total.tolist() == [1, 1, 1, 1, 0.75, 1, 1, 1, 1]
    assert weight[4] == 0.25


def test_arguments_of_local_attention():
    with pytest.raises(ValueError, match="`window` must be at least 3, got 2"):
        LocalRegionAttention(4, 4, 8, window=2)
    with pytest.raises(ValueError, match="`overlap` must be one of 'mean', 'published', got 'sum'"):
        LocalRegionAttention(4, 4, 8, overlap="sum")
    with pytest.raises(ValueError, match="`x` must have at least 16 x 16 pixels, got 20 x 15"):
        LocalRegionAttention(4, 4, 8)(torch.randn(1, 4, 20, 15))


# --- distributed training --------------------------------------------------------------------------------------

DISTRIBUTED = """
import torch, torch.distributed as dist, sys
from visionattn.layers.token_aggregation import TokenAggregationBlock
torch.manual_seed(0)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
block = TokenAggregationBlock(8, 8, 16, 2, centers=3, group_size=4).train()
whole = torch.randn(4, 8, 5, 5)
own = whole[2 * rank : 2 * rank + 2].requires_grad_()
out = block(own)
assert bool(block.initted)
out.square().sum().backward()
dist.destroy_process_group()
alone = TokenAggregationBlock(8, 8, 16, 2, centers=3, group_size=4).train()
alone.load_state_dict({**block.state_dict(), "initted": torch.tensor(False)})
whole = whole.detach().requires_grad_()
expected = alone(whole)
expected.square().sum().backward()
part = slice(2 * rank, 2 * rank + 2)
torch.testing.assert_close(block.means, alone.means)
torch.testing.assert_close(out, expected[part])
torch.testing.assert_close(own.grad, whole.grad[part], rtol=1e-4, atol=1e-5)
"""


def test_two_processes_find_the_centers_of_one(tmp_path):
    commands = [[sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path / "meet")] for rank in range(2)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
