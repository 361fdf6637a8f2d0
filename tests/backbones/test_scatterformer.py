"""ScatterFormer: the authors' numbers, and what can happen to voxels."""

import pytest
import timm
import torch
from timm.models import group_parameters

import visionattn  # noqa: F401  (registers the models)
from visionattn.backbones import load_official
from visionattn.backbones.scatterformer import ScatterFormer
from visionattn.layers.scattered import (
    AttentivePillarPool,
    CrossWindowFFN,
    ScatteredLinearAttention,
    ScatterFormerStage,
    window_order,
)
from visionattn.layers.sparse_conv import SparseTensor

SMALL = dict(in_chans=6, embed_dim=16, depths=(1, 1), stem_depth=1, num_heads=2, pool_heads=2, window_size=4,
             grid_size=(12, 14, 8), num_classes=0)  # fmt: skip


def recorded(shared_dir, name):
    return torch.load(shared_dir / "parity" / "scatterformer" / f"scatterformer_{name}.pt", weights_only=True)


def by_place(features: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """Rows in order of their coordinates."""
    z, y, x = (int(coords[:, i].max()) + 1 for i in (1, 2, 3))
    return features[(((coords[:, 0] * z + coords[:, 1]) * y + coords[:, 2]) * x + coords[:, 3]).argsort()]


def scan(*counts: int, shape=(9, 14, 12), seed: int = 0) -> torch.Tensor:
    """Coordinates of so many voxels in each sample."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for sample, count in enumerate(counts):
        cells = torch.randperm((shape[0] - 1) * shape[1] * shape[2], generator=generator)[:count]
        x, rest = cells % shape[2], cells // shape[2]
        parts.append(torch.stack([torch.full_like(x, sample), rest // shape[1], rest % shape[1], x], 1))
    return torch.cat(parts)


def test_attention_layer(shared_dir):
    fx = recorded(shared_dir, "sla_layer")
    layer = ScatteredLinearAttention(128, 4)
    layer.load_state_dict(fx["state_dict"])
    x = fx["inputs"]["x"].requires_grad_()
    y = layer(x, torch.cat([fx["inputs"]["offsets"], torch.tensor([len(x)])]).long())
    torch.testing.assert_close(y, fx["outputs"]["y"], rtol=1e-5, atol=1e-4)
    y.backward(fx["inputs"]["grad_out"])
    torch.testing.assert_close(x.grad, fx["grads"]["x"], rtol=1e-4, atol=1e-4)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, fx["grads"][name], rtol=1e-4, atol=1e-3)


def test_cross_window_exchange(shared_dir):
    fx = recorded(shared_dir, "cwi")
    layer = CrossWindowFFN(64, 12).eval()
    layer.load_state_dict(fx["state_dict"])
    x = fx["inputs"]["features"].requires_grad_()
    out = layer(SparseTensor(x, fx["inputs"]["indices"].long(), tuple(fx["meta"]["spatial_shape"]), 2))
    torch.testing.assert_close(out.features, fx["outputs"]["features"], rtol=1e-5, atol=1e-4)
    out.features.backward(fx["inputs"]["grad_out"])
    torch.testing.assert_close(x.grad, fx["grads"]["x"], rtol=1e-4, atol=1e-4)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, fx["grads"][name], rtol=1e-4, atol=2e-3)


def test_stage(shared_dir):
    fx = recorded(shared_dir, "stage")
    stage = ScatterFormerStage(128, 4, 2, fx["meta"]["win_size"]).eval()
    stage.load_state_dict(fx["state_dict"])
    x = fx["inputs"]["features"].requires_grad_()
    out = stage(SparseTensor(x, fx["inputs"]["indices"].long(), tuple(fx["meta"]["spatial_shape"]), 2))
    wanted, places = fx["outputs"]["features"], fx["outputs"]["indices"].long()
    torch.testing.assert_close(by_place(out.features, out.coords), by_place(wanted, places), rtol=1e-4, atol=1e-4)
    ours = {tuple(c): i for i, c in enumerate(out.coords.tolist())}
    order = torch.tensor([ours[tuple(c)] for c in places.tolist()])
    out.features[order].backward(fx["inputs"]["grad_out"])
    torch.testing.assert_close(x.grad, fx["grads"]["x"], rtol=1e-3, atol=1e-3)


def test_whole_backbone(shared_dir):
    fx = recorded(shared_dir, "backbone_c64_w6")
    model = timm.create_model(
        "scatterformer_waymo", in_chans=32, embed_dim=64, window_size=6, grid_size=fx["meta"]["grid_xyz"], num_classes=0
    ).eval()
    whole = {f"backbone_3d.{k}": v for k, v in fx["state_dict"].items()}
    head = {"dense_head.shared_conv.weight": torch.ones(1)}
    report = load_official(model, {"model_state": {**whole, **head}, "epoch": 80})
    assert (report.missing, report.interpolated) == ({}, {})
    assert report.dropped == {"dense_head.shared_conv.weight": "not part of the backbone"}
    features, coords = fx["inputs"]["voxel_features"], fx["inputs"]["voxel_coords"].long()
    with torch.no_grad():
        pillars = model.forward_pillars(features, coords, 2)
        bev = model.forward_sparse(features, coords, 2)
    wanted, places = fx["outputs"]["pillar_features"], fx["outputs"]["pillar_indices"].long()
    assert torch.equal(by_place(pillars.coords, pillars.coords), by_place(places, places))
    torch.testing.assert_close(by_place(pillars.features, pillars.coords), by_place(wanted, places), rtol=0, atol=5e-4)
    torch.testing.assert_close(bev, fx["outputs"]["bev"], rtol=0, atol=5e-4)


def test_windows_are_those_of_their_definition():
    coords = scan(60, 0, 50)
    order, offsets = window_order(coords, 4)
    seen = set()
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        window = {(b, y // 4, x // 4) for b, _, y, x in coords[order[begin:end]].tolist()}
        assert len(window) == 1
        assert not window & seen
        seen |= window
    assert offsets[-1] == len(coords) == len(set(order.tolist()))


def test_the_order_of_the_voxels_does_not_matter():
    torch.manual_seed(0)
    model = ScatterFormer(**SMALL).eval()
    coords = scan(80, 40)
    features, order = torch.randn(120, 6), torch.randperm(120)
    with torch.no_grad():
        first, second = (
            model.forward_sparse(features, coords, 2),
            model.forward_sparse(features[order], coords[order], 2),
        )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts", [(0,), (1,), (2,), (0, 0), (30, 0, 1), (0, 900)])
def test_few_voxels_and_many(counts):
    torch.manual_seed(0)
    model = ScatterFormer(**SMALL)
    coords = scan(*counts)
    features = torch.randn(len(coords), 6, requires_grad=True)
    for mode in (model.train(), model.eval()):
        bev = mode.forward_sparse(features, coords, len(counts))
        assert bev.shape == (len(counts), 16, 7, 6)
        assert bev.isfinite().all()
        bev.sum().backward()
        for sample, count in enumerate(counts):
            if not count:
                assert not bev[sample].any()


def test_one_window_with_fifty_thousand_voxels():
    torch.manual_seed(0)
    stage = ScatterFormerStage(8, 2, 1, 112).eval()
    coords = scan(50_000, shape=(9, 112, 112))
    with torch.no_grad():
        out = stage(SparseTensor(torch.randn(50_000, 8), coords, (9, 112, 112), 1))
    assert out.features.isfinite().all()


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = ScatterFormer(**SMALL).train()
    bev = model.forward_sparse(torch.randn(300, 6), scan(200, 100), 2)
    (bev * torch.randn_like(bev)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_pillar_pool_looks_only_at_its_pillar():
    torch.manual_seed(0)
    pool = AttentivePillarPool(8, 4, 2).eval()
    coords = torch.tensor([[0, 0, 0, 0], [0, 3, 0, 0], [0, 1, 2, 1]])
    features = torch.randn(3, 8)
    both = pool(SparseTensor(features, coords, (4, 3, 2), 1))
    assert both.coords.tolist() == [[0, 0, 0, 0], [0, 0, 2, 1]]
    alone = pool(SparseTensor(features[2:], coords[2:], (4, 3, 2), 1))
    torch.testing.assert_close(both.features[1:], alone.features)
    with pytest.raises(ValueError, match="`pillar_size`=4 voxels high, got 5"):
        pool(SparseTensor(features, coords, (5, 3, 2), 1))


def test_bfloat16_autocast():
    torch.manual_seed(0)
    model, coords, features = ScatterFormer(**SMALL).eval(), scan(150), torch.randn(150, 6)
    with torch.no_grad():
        expected = model.forward_sparse(features, coords, 1)
        with torch.autocast("cpu", torch.bfloat16):
            out = model.forward_sparse(features, coords, 1)
    assert (out.float() - expected).abs().mean() < 0.05 * expected.abs().mean() + 0.02


# timm


def test_registered_sizes():
    for name, count in (("scatterformer_waymo", 8_000_000), ("scatterformer_nuscenes", 8_000_000)):
        model = timm.create_model(name, device="meta")
        assert 4_000_000 < sum(p.numel() for p in model.parameters()) < count
        assert model.num_features == 128
    assert sum(p.numel() for p in timm.create_model("scatterformer_pico").parameters()) < 300_000


def test_dense_entry_is_a_backbone():
    torch.manual_seed(0)
    model = timm.create_model("scatterformer_pico", in_chans=3, num_classes=5).eval()
    x = torch.randn(2, 3, 30, 37)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 32, 15, 19)
        torch.testing.assert_close(model(x), model.forward_head(features))
        final, levels = model.forward_intermediates(x)
        torch.testing.assert_close(final, features)
        assert [tuple(level.shape) for level in levels] == [(2, 32, 30, 37), (2, 32, 30, 37), (2, 32, 15, 19)]
        assert torch.equal(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
        b, y, x_ = torch.ones(2, 30, 37).nonzero().unbind(1)  # each pixel is a voxel at the bottom of the grid
        voxels = torch.stack([b, torch.zeros_like(b), y, x_], 1)
        sparse = timm.create_model("scatterformer_pico", in_chans=3, grid_size=(37, 30, model.grid_size[2])).eval()
        sparse.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("head.")}, strict=False)
        torch.testing.assert_close(sparse.forward_sparse(x[b, :, y, x_], voxels, 2), features)
    maps = timm.create_model("scatterformer_pico", features_only=True, in_chans=3)
    assert (maps.feature_info.channels(), maps.feature_info.reduction()) == ([32, 32, 32], [1, 1, 2])
    assert [tuple(m.shape) for m in maps(x)] == [(2, 32, 30, 37), (2, 32, 30, 37), (2, 32, 15, 19)]
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 32, 15, 19)
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)


def test_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = ScatterFormer(**{**SMALL, "num_classes": 3}).train()
    x = torch.randn(2, 6, 20, 20)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    runs = []
    for enable in (False, True):
        model.load_state_dict(state)
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        out = model(x)
        out.square().sum().backward()
        runs.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, two in zip(*runs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_group():
    model = ScatterFormer(**{**SMALL, "depths": (2, 2)})
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
        assert set(groups) == {n for n, _ in model.named_parameters()}
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    order = [fine[n] for n in ("cpe.0.0.weight", "stage1.0.norm_layers.0.weight", "stage1.0.cffn_layers.1.fc1.weight",
                               "stage1.2.weight", "stage2.0.attn_layers.0.qkv.weight", "app.norm.weight")]  # fmt: skip
    assert order == sorted(order)
    assert len(set(order)) == len(order)


def test_wrong_arguments():
    for options, message in (
        (dict(window_size=5), "`window_size` must be even and at least 2, got 5"),
        (dict(embed_dim=18, num_heads=2), "`dim` must be a multiple of 4, got 18"),
        (dict(num_heads=3), "`num_heads` must divide `dim`=16, got 3"),
        (dict(depths=(1,)), "`depths` must be two integers"),
        (dict(grid_size=(4, 4)), "`grid_size` must be three integers"),
        (dict(grid_size=(4, 4, 1)), r"multiple of 4, .* got \(4, 4, 1\)"),
        (dict(grid_size=(4, 4, 6)), r"multiple of 4, .* got \(4, 4, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ScatterFormer(**{**SMALL, **options})
    model = ScatterFormer(**SMALL)
    with pytest.raises(ValueError, match="must be inside spatial_shape"):
        model.forward_sparse(torch.randn(1, 6), torch.tensor([[0, 0, 14, 0]]), 1)
