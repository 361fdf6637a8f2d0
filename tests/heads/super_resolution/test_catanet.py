"""CATANet and the network on a backbone: recordings of the authors' model, sizes, and files of weights."""

import importlib.util

import pytest
import torch
from torch import nn

from visionattn.heads.super_resolution.backbone_net import BackboneUpscaler
from visionattn.heads.super_resolution.catanet import CATANet
from visionattn.heads.super_resolution.reconstruction import reflect_to

SMALL = {"dim": 8, "qk_dim": 8, "mlp_dim": 16, "heads": 2, "centers": (4, 8), "group_sizes": (16, 8), "windows": (8, 9)}


def small(scale=2, **changes):
    torch.manual_seed(0)
    return CATANet(scale, **(SMALL | changes)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recorded_models(shared_dir, dtype):
    """One recorded model has a token whose two best centers differ in similarity by 4e-8, which is below the precision
    of float32: the rounding of the CPU decides, so that this model is compared in float64 alone."""
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity/fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    files = sorted((shared_dir / "parity/catanet").glob("catanet_full_*.pt"))
    assert files
    for file in files:
        if dtype == torch.float32 and file.stem == "catanet_full_x2_uninitialised_33x31":
            continue
        record = torch.load(file, weights_only=True)
        model = CATANet(record["meta"]["cfg"]["upscale"], overlap="published").eval()
        weights = fill.official_state_dict(record)
        assert fill.state_dict_sha256(weights) == record["weights_sha256"]
        initted = torch.tensor(record["meta"]["initted"])
        model.load_state_dict(weights | {f"blocks.{i}.0.initted": initted for i in range(8)})
        assert sum(p.numel() for p in model.parameters()) == record["n_params"]
        x = fill.fixture_input(record).to(dtype).requires_grad_()
        y = model.to(dtype)(x).float()
        stride, expected = record.get("output_stride", 1), record["outputs"][0]
        tolerance = 1e-5 * max(1, float(expected.abs().max()))
        torch.testing.assert_close(y[..., ::stride, ::stride], expected, rtol=0, atol=tolerance)
        fill.loss([y]).backward()
        largest = float(record["grad_input_sub37"].abs().max())
        gradient = x.grad.float().flatten()[::37]
        torch.testing.assert_close(gradient, record["grad_input_sub37"], rtol=0, atol=1e-4 * largest)
        norms = {name: float(p.grad.norm()) for name, p in model.named_parameters()}
        assert norms == pytest.approx(record["grad_norms"], rel=1e-4)


@pytest.mark.parametrize(("scale", "count"), [(1, 419_675), (2, 477_435), (3, 549_635), (4, 535_195)])
def test_published_sizes(scale, count):
    with torch.device("meta"):
        model = CATANet(scale)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(b.numel() for b in model.buffers()) == 19_208
    assert len(model.state_dict()) == {1: 284, 2: 286, 3: 286, 4: 288}[scale]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_any_size(scale):
    model = small(scale)
    for size in ((9, 9), (10, 17), (31, 12), (1, 1), (1, 5), (8, 30)):
        y = model(torch.rand(2, 3, *size))
        assert y.shape == (2, 3, scale * size[0], scale * size[1])
        assert y.isfinite().all()


def test_small_images_are_extended_by_reflection():
    model, x = small(), torch.rand(1, 3, 4, 12)
    by_hand = torch.cat([x, x.flip(2)[:, :, 1:], x[:, :, 1:3]], 2)  # rows 0 1 2 3 2 1 0 1 2
    torch.testing.assert_close(model(x), model(by_hand)[:, :, :8])
    assert torch.equal(reflect_to(x[:, :, :1], 3), x[:, :, [0, 0, 0]])


def test_without_weights_it_is_bilinear_enlargement():
    for scale in (2, 3, 4):
        model, x = small(scale), torch.rand(1, 3, 12, 14)
        nn.init.zeros_(model.last_conv.weight)
        nn.init.zeros_(model.last_conv.bias)
        torch.testing.assert_close(model(x), nn.Upsample(scale_factor=scale, mode="bilinear")(x))
    model = small(1)
    nn.init.zeros_(model.last_conv.weight)
    nn.init.zeros_(model.last_conv.bias)
    assert torch.equal(model(x), x)


def test_backends_agree():
    x = torch.rand(1, 3, 12, 14)
    expected = small()(x)
    for backend in ("torch", "reference"):
        torch.testing.assert_close(small(backend=backend)(x), expected, rtol=1e-4, atol=1e-5)


def test_half_precision():
    model, x = small(), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert (y - model(x)).abs().mean() < 0.02


def test_arguments():
    with pytest.raises(ValueError, match="`scale` must be one of 1, 2, 3, 4, got 5"):
        CATANet(5)
    with pytest.raises(ValueError, match="must have one entry per block, got 8, 7 and 8"):
        CATANet(2, group_sizes=(8,) * 7)


class Pyramid(nn.Module):
    """Two levels with strides 4 and 8, from images whose sides are multiples of 8."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 10, 2, 2)

    def forward(self, x):
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0
        x = self.first(x)
        return [x, self.second(x)]


def test_backbone():
    torch.manual_seed(0)
    model = BackboneUpscaler(Pyramid(), (6, 10), (4, 8), scale=3, dim=12, depth=2)
    for size in ((16, 24), (13, 21), (3, 5)):
        y = model(torch.rand(2, 3, *size))
        assert y.shape == (2, 3, 3 * size[0], 3 * size[1])
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with pytest.raises(ValueError, match="`depth` must be at least 1, got 0"):
        BackboneUpscaler(Pyramid(), (6, 10), (4, 8), depth=0)


def test_backbone_keeps_the_detail_of_the_input():
    """One pixel changes the output at its place: a pyramid alone could not tell where in its 4x4 cell it is."""
    torch.manual_seed(0)
    model = BackboneUpscaler(Pyramid(), (6, 10), (4, 8), scale=2, dim=12, depth=1).eval()
    x = torch.rand(1, 3, 16, 16)
    found = []
    for column in (8, 9):
        changed = x.clone()
        changed[..., 8, column] += 0.5
        difference = (model(changed) - model(x))[0].abs().sum(0)
        found.append(int(difference.sum(0).argmax()) // 2)
    assert found == [8, 9]
