"""Regions that occur twice in an image are found, and nothing else is."""

import pytest
import torch

from visionattn.heads.forgery.matches import SelfMatch
from visionattn.heads.forgery.net import ForgeryNet
from visionattn.heads.forgery.noise import MEAN, STD


def scene(height=96, width=128, seed=0):
    """A random texture of several scales without repetitions, ``[1, 3, H, W]`` in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.nn.functional.interpolate(
            torch.rand(1, 3, height // side + 1, width // side + 1, generator=generator),
            (height, width),
            mode="bicubic",
        )
        for side in (4, 8, 16)
    ]
    return sum(layers).clamp(0, 3) / 3


def normalized(image):
    return (image - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@pytest.mark.parametrize("shift", [(44, 60), (45, 58), (0, 66)])
def test_both_regions_of_a_copy_have_consistent_offsets(shift):
    image = scene()
    y, x = 8, 12
    image[..., y + shift[0] : y + shift[0] + 40, x + shift[1] : x + shift[1] + 40] = image[..., y : y + 40, x : x + 40]
    _, consistency, _ = SelfMatch()(normalized(image))[0]
    inside = torch.zeros(96, 128, dtype=torch.bool)
    for top, left in ((y, x), (y + shift[0], x + shift[1])):  # patches within the regions
        inside[top + 10 : top + 30, left + 10 : left + 30] = True
    cells = inside[2::4, 2::4]
    outside = torch.nn.functional.max_pool2d(inside[None].float(), 41, 1, 20)[0, 2::4, 2::4] == 0
    assert consistency[cells].mean() > 0.6
    assert consistency[outside].mean() < 0.2


def test_an_image_without_copies_has_no_consistent_offsets():
    assert SelfMatch()(normalized(scene()))[0, 1].mean() < 0.1


def test_flat_patches_have_no_matches():
    similarity, _, contrast = SelfMatch()(normalized(torch.full((1, 3, 64, 64), 0.5)))[0]
    assert similarity.max() < 1e-3
    assert contrast.max() < 1e-3


def test_regions_of_a_copy_are_marked_and_other_images_are_not():
    image, module = scene(160, 192), SelfMatch()
    plain, score = module.copies(normalized(image))
    assert plain.max() <= score.item() < -2
    image[..., 90:150, 110:170] = image[..., 10:70, 20:80]
    pixels, score = module.copies(normalized(image))
    assert pixels.shape == (1, 1, 160, 192)
    assert score > 2
    both = torch.zeros(160, 192, dtype=torch.bool)
    both[90:150, 110:170] = both[10:70, 20:80] = True
    marked = pixels[0, 0] > 0
    assert (marked & both).sum() > 0.85 * both.sum()
    assert (marked & ~both).sum() < 0.2 * both.sum()


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (33, 41)])
def test_small_images_and_batches(size):
    x = torch.randn(2, 3, *size)
    module = SelfMatch()
    out = module(x)
    assert out.shape == (2, 3, -(-size[0] // 8) * 2, -(-size[1] // 8) * 2)
    torch.testing.assert_close(out[1:], module(x[1:]), atol=1e-5, rtol=1e-4)
    assert torch.isfinite(out).all()
    pixels, score = module.copies(x)
    assert pixels.shape == (2, 1, *size)
    assert (score < 0).all()


def test_large_images_are_reduced_and_copies_are_still_found():
    image = scene(256, 256)
    image[..., 150:230, 150:230] = image[..., 10:90, 20:100]
    out = SelfMatch(limit=1024)(normalized(image))
    assert out.shape == (1, 3, 64, 64)
    assert out[0, 1, 42:52, 42:52].mean() > 2 * out[0, 1, 42:52, 5:15].mean()


def test_the_network_learns_from_the_maps():
    import timm

    backbone = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3, 4))
    info = backbone.feature_info
    net = ForgeryNet(backbone, info.channels(), info.reduction(), matches=True)
    net(torch.randn(2, 3, 64, 64)).mask_logits.sum().backward()
    first = next(p for p in net.noise_backbone.parameters() if p.ndim == 4)
    assert first.grad[:, -SelfMatch.out_chans :].abs().sum() > 0


def test_other_extractors_are_refused():
    with pytest.raises(ValueError, match="matches"):
        ForgeryNet(torch.nn.Identity(), [8], [4], noise="highpass", matches=True)


def test_exported_for_any_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, dynamic = SelfMatch(limit=420), torch.export.Dim.DYNAMIC
    x = torch.randn(2, 3, 64, 88)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},))
    torch.onnx.export(program, (x,), tmp_path / "a.onnx", dynamo=True, opset_version=18, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for shape in ((1, 3, 40, 48), (3, 3, 50, 71), (1, 3, 160, 70)):  # the last is reduced
        x = torch.randn(*shape)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), module(x), atol=1e-4, rtol=1e-4)


def test_no_positions_are_stored_in_optimized_files(tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = torch.export.export(SelfMatch(), (torch.randn(1, 3, 128, 128),))
    torch.onnx.export(program, (), tmp_path / "a.onnx", dynamo=True, opset_version=18, verbose=False)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "b.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(tmp_path / "a.onnx", options)
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer]
    assert sum(values.nbytes for values in stored if values.dtype.kind in "ib") < 32 * 32 * 121
