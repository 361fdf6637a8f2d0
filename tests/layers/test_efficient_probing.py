"""Efficient probing: a recording of the authors' module, its equations, and probes of frozen models."""

import pytest
import timm
import torch
from torch.nn import functional as F

from visionattn.layers import EfficientProbe, EfficientProbing


def test_published_modules(shared_dir):
    """Outputs, attention maps and all gradients, from the published names, loaded strictly."""
    files = sorted((shared_dir / "parity/modules").glob("ep_*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        options = record["meta"]["kwargs"]
        pool = EfficientProbing(options["dim"], options["num_queries"], options["d_out"])
        pool.load_state_dict(record["state_dict"])
        x = record["inputs"]["x"].clone().requires_grad_()
        y = pool(x)
        torch.testing.assert_close(y, record["outputs"]["y"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pool.attention(x), record["outputs"]["attn"], rtol=1e-5, atol=1e-5)
        y.backward(record["inputs"]["grad_out"])
        torch.testing.assert_close(x.grad, record["grads"].pop("x"), rtol=1e-4, atol=1e-4)
        for name, gradient in record["grads"].items():
            found = pool.get_parameter(name.removeprefix("param:")).grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("queries", "d_out"), [(1, 1), (4, 1), (3, 2), (2, 6)])
def test_is_its_definition(queries, d_out):
    torch.manual_seed(0)
    pool = EfficientProbing(12, queries, d_out).double()
    torch.nn.init.normal_(pool.cls_token)
    x = torch.randn(2, 7, 12, dtype=torch.double)
    weights = (pool.cls_token[0] @ x.mT / 12**0.5).softmax(-1)
    chunks = pool.v(x).chunk(queries, -1)
    expected = torch.cat([torch.einsum("bn,bnc->bc", weights[:, j], chunk) for j, chunk in enumerate(chunks)], 1)
    assert expected.shape == (2, 12 // d_out)
    torch.testing.assert_close(pool(x), expected)
    torch.testing.assert_close(pool.attention(x), weights)


def test_any_map():
    pool = EfficientProbing(8, 4)
    for size in ((3, 5), (1, 1), (9, 2)):
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(pool(x), pool(x.flatten(2).mT))
        assert pool.attention(x).shape == (2, 4, size[0] * size[1])


def test_compile_export_and_half_precision():
    pool = EfficientProbing(8, 4).eval()
    x = torch.randn(2, 6, 8)
    torch.testing.assert_close(torch.compile(pool, fullgraph=True, backend="aot_eager")(x), pool(x))
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(pool, (x,), dynamic_shapes=dynamic).module()
    other = torch.randn(3, 11, 8)
    torch.testing.assert_close(program(other), pool(other))
    with torch.autocast("cpu", torch.bfloat16):
        assert (pool(x).float() - pool(x.float())).abs().max() < 0.03
    assert (pool.bfloat16()(x.bfloat16()).float() - pool.float()(x)).abs().max() < 0.03


MODELS = {
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 1},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 1, "reg_tokens": 2},
    "resnet18": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "convnext_atto": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_probes(name):
    """The backbone stays as it is, statistics of batch norms too; the probe learns."""
    torch.manual_seed(0)
    backbone = timm.create_model(name, **MODELS[name]).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    probe = EfficientProbe(backbone, 3, num_queries=8, batch_norm=True).train()
    images, labels = torch.randn(6, 3, 64, 64), torch.arange(6) % 3
    trained = [p for p in probe.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in (*probe.pool.parameters(), *probe.fc.parameters())}
    optimizer = torch.optim.Adam(trained, 0.01)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(probe(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in trained)
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)
    assert not backbone.training


def test_what_the_queries_see():
    """Class token and registers only on request; channels-last features as a map."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=(64, 32), depth=1, reg_tokens=2)
    images = torch.randn(1, 3, 64, 32)
    assert EfficientProbe(vit, 2, 4).forward_features(images).shape == (1, 8, 192)
    everything = EfficientProbe(vit, 2, 4, prefix_tokens=True).forward_features(images)
    torch.testing.assert_close(everything, vit.forward_features(images))
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, embed_dim=24, depths=(1, 1, 1, 1))
    images = torch.randn(1, 3, 64, 64)
    features = EfficientProbe(swin, 2, 4).forward_features(images)
    torch.testing.assert_close(features, swin.forward_features(images).permute(0, 3, 1, 2))


def test_errors():
    for options, message in (
        ({"d_out": 5}, "`d_out` must be at least 1 and divide `dim`=12, got 5"),
        ({"d_out": 0}, "`d_out` must be at least 1"),
        ({"num_queries": 4, "d_out": 2}, "`num_queries` must be at least 1 and divide `dim / d_out`=6, got 4"),
        ({"num_queries": 0}, "`num_queries` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            EfficientProbing(12, **options)
    with pytest.raises(ValueError, match=r"`x` must have shape \[B, N, 12\]"):
        EfficientProbing(12, 4)(torch.zeros(2, 12))
    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0"):
        EfficientProbe(timm.create_model("resnet18"), 0)
    with pytest.raises(ValueError, match=r"`backbone` must be a timm model .*, got a Linear"):
        EfficientProbe(torch.nn.Linear(2, 2), 3)
