"""Dataset, transforms, model and metric."""

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope

import visionattn.openmmlab  # noqa: F401  makes the types known
from visionattn.engine.config.checks import find_problems
from visionattn.engine.config.load import load_config
from visionattn.engine.weights import fit
from visionattn.errors import CheckpointError, ConfigError, DataError
from visionattn.heads.super_resolution.imresize import downscale, imresize, to_uint8
from visionattn.heads.super_resolution.merging import EIGHT
from visionattn.heads.super_resolution.metrics import psnr, ssim
from visionattn.heads.super_resolution.mmlab_data import LoadPatchPair, PackSRInputs, RandomSymmetry

NET = {"dim": 8, "qk_dim": 8, "mlp_dim": 16, "heads": 2, "centers": (4,), "group_sizes": (16,), "windows": (8,)}
TEST = [
    {"type": "LoadImageFromFile"},
    {"type": "visionattn.LoadHighResolution"},
    {"type": "visionattn.PackSRInputs"},
]


def build(registry, **config):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmengine"):
        return registry.build(config)


def picture(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(256, size=(height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def folder(tmp_path):
    """Two images of 30x44 and 45x37 pixels, and the low-resolution image of each at factor 2."""
    for name, size in (("a", (30, 44)), ("b", (45, 37))):
        image = picture(*size)
        (tmp_path / "HR").mkdir(exist_ok=True)
        (tmp_path / "LR/X2").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / f"HR/{name}.png"), image)
        low = downscale(image[: size[0] // 2 * 2, : size[1] // 2 * 2], 2)
        cv2.imwrite(str(tmp_path / f"LR/X2/{name}x2.png"), low)
    return tmp_path


def dataset(folder, low=True, pipeline=TEST, scale=2, **more):
    prefix = {"gt": "HR"} | ({"img": "LR"} if low else {})
    kind = "visionattn.SuperResolutionDataset"
    return build(DATASETS, type=kind, scale=scale, data_root=str(folder), data_prefix=prefix, pipeline=pipeline, **more)


def test_pairs_and_computed_images_are_the_same(folder):
    stored, computed = dataset(folder), dataset(folder, low=False)
    assert stored.check() == "2 images"
    assert computed.check() == "2 images; low-resolution images are computed"
    for one, other in zip(stored, computed, strict=True):
        assert torch.equal(one["inputs"], other["inputs"])
        assert torch.equal(one["data_samples"].gt_image, other["data_samples"].gt_image)
    high = cv2.imread(str(folder / "HR/b.png"))
    sample = stored[1]
    assert sample["inputs"].shape == (3, 22, 18)
    assert (sample["data_samples"].gt_image.numpy() == high[:44, :36, ::-1].transpose(2, 0, 1)).all()


@pytest.mark.parametrize("low", [True, False])
def test_patches_are_parts_of_the_images(folder, low):
    load = LoadPatchPair(8, cache_mb=1)
    infos = [dataset(folder, low).get_data_info(index) for index in range(2)]
    images = {name: cv2.imread(str(folder / f"LR/X2/{name}x2.png")) for name in "ab"}
    places = set()
    for _ in range(20):
        for name, info in zip("ab", infos, strict=True):
            found = load(dict(info))
            whole, high = images[name], cv2.imread(str(folder / f"HR/{name}.png"))
            matches = [
                (y, x)
                for y in range(whole.shape[0] - 7)
                for x in range(whole.shape[1] - 7)
                if (whole[y : y + 8, x : x + 8] == found["img"]).all()
            ]
            assert len(matches) == 1
            y, x = matches[0]
            assert (found["gt_image"] == high[2 * y : 2 * y + 16, 2 * x : 2 * x + 16]).all()
            places.add((name, y, x))
    assert len(places) > 25
    assert len(load._cache) == (4 if low else 2)


def test_symmetries():
    low, np_random = np.arange(48).reshape(4, 4, 3), np.random
    np_random.seed(0)
    seen = set()
    for _ in range(60):
        results = RandomSymmetry()({"img": low, "gt_image": low.repeat(2, 0).repeat(2, 1)})
        assert (results["gt_image"] == results["img"].repeat(2, 0).repeat(2, 1)).all()
        seen.add(results["img"].tobytes())
    assert seen == {view.apply(low).tobytes() for view in EIGHT}
    assert len(seen) == 8


def test_colors():
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 2] = 200  # red, in BGR
    packed = PackSRInputs()({"img": image, "gt_image": image, "scale": 1})
    assert packed["inputs"][:, 0, 0].tolist() == [0, 0, 200]
    assert packed["data_samples"].gt_image[:, 0, 0].tolist() == [200, 0, 0]
    model = build(MODELS, type="visionattn.SuperResolver", scale=1, net=NET)
    batch = model.data_preprocessor({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})
    assert batch["inputs"][0, :, 0, 0].tolist() == pytest.approx([200 / 255, 0, 0])


def test_mistakes_in_data(folder):
    cv2.imwrite(str(folder / "LR/X2/bx2.png"), picture(20, 18))
    with pytest.raises(DataError, match=r"bx2\.png: 18x20 is not 1/2 of 37x45 of .*b\.png"):
        dataset(folder).check()
    with pytest.raises(DataError, match=r"a\.png: 1/2 of it, 22x15, is smaller than the patches of 16 pixels"):
        dataset(folder, low=False).check([{"type": "visionattn.LoadPatchPair", "patch_size": 16}])
    cv2.imwrite(str(folder / "LR/X2/bx2.png"), picture(24, 18))
    with pytest.raises(DataError, match=r"b\.png: must have at least 36 x 48 pixels, got 37x45"):
        dataset(folder)[1]
    with pytest.raises(DataError, match="is smaller than the patch of 40 pixels"):
        LoadPatchPair(40)(dataset(folder).get_data_info(0))
    for arguments, message in (({"patch_size": 0}, "`patch_size`"), ({"cache_mb": -1}, "`cache_mb`")):
        with pytest.raises(ConfigError, match=message):
            LoadPatchPair(**arguments)


def test_model(folder):
    model = build(MODELS, type="visionattn.SuperResolver", scale=2, net=NET)
    sample = dataset(folder)[0]
    batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
    data = model.data_preprocessor(batch)
    losses = model(**data, mode="loss")
    expected = (model(data["inputs"]) - sample["data_samples"].gt_image / 255).abs().mean()
    assert float(losses["loss_l1"].detach()) == pytest.approx(float(expected.detach()), rel=2e-2)  # new centers
    losses["loss_l1"].backward()
    assert all(p.grad is not None for p in model.parameters())
    (found,) = model.eval().test_step(batch)
    assert found.pred_image.shape == (3, 30, 44)
    with pytest.raises(ConfigError, match=r"model.net: `scale` must be one of 1, 2, 3, 4, got 5"):
        build(MODELS, type="visionattn.SuperResolver", scale=5)


def test_backbone(folder):
    backbone = {"type": "visionattn.Backbone", "model_name": "dinat_pico", "out_indices": (0, 1)}
    model = build(MODELS, type="visionattn.SuperResolver", scale=2, backbone=backbone, net={"dim": 8, "depth": 1})
    sample = dataset(folder)[0]
    batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
    loss = model(**model.data_preprocessor(batch), mode="loss")["loss_l1"]
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.net.backbone.parameters())
    (found,) = model.eval().test_step(batch)
    assert found.pred_image.shape == (3, 30, 44)


@pytest.mark.parametrize(("key", "prefix"), [("params", ""), ("params_ema", ""), ("params", "module."), (None, "")])
def test_files_of_the_authors(key, prefix):
    source = build(MODELS, type="visionattn.SuperResolver", scale=2, net=NET)
    for parameter in source.net.parameters():
        torch.nn.init.normal_(parameter)
    source.net.blocks[0][0].initted.fill_(True)
    weights = {f"{prefix}{name}": tensor for name, tensor in source.net.state_dict().items()}
    model = build(MODELS, type="visionattn.SuperResolver", scale=2, net=NET)
    fit(model, weights if key is None else {key: weights}, "x2.pth")
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    other = build(MODELS, type="visionattn.SuperResolver", scale=4, net=NET)
    with pytest.raises(CheckpointError):
        fit(other, {"params": weights}, "x2.pth")
    report = fit(other, {"params": weights}, "x2.pth", partial=True)  # factor 4 starts from factor 2
    assert {name.split(".")[1] for name in dict.fromkeys(report.loaded)} >= {"first_conv", "blocks", "last_conv"}
    assert torch.equal(other.net.first_conv.weight, source.net.first_conv.weight)


def test_metric(folder):
    metric = build(METRICS, type="visionattn.SuperResolutionMetric", channels=("Y", "RGB"), bicubic=True)
    data, expected = dataset(folder), []
    generator = torch.Generator().manual_seed(0)
    for index in (0, 1, 1):  # the last one as a sampler repeats it
        sample = data[index]
        truth = sample["data_samples"].gt_image / 255
        enlarged = truth + 0.05 * torch.randn(truth.shape, generator=generator)
        sample["data_samples"].set_field(enlarged, "pred_image")
        metric.process({"inputs": [sample["inputs"]]}, [sample["data_samples"].to_dict()])
        expected.append((enlarged, truth, sample))
    found = metric.compute_metrics(metric.results)
    for name, measure in (("PSNR", psnr), ("SSIM", ssim)):
        for channel, luma in (("Y", True), ("RGB", False)):
            for suffix, raw in (("", False), ("_raw", True)):
                values = [measure(x, y, 2, luma, raw) for x, y, _ in expected[:2]]
                assert found[f"{name}_{channel}{suffix}"] == pytest.approx(np.mean(values), abs=1e-4)
    low = cv2.imread(str(folder / "LR/X2/ax2.png"))
    bicubic = to_uint8(imresize(low, 2))[..., ::-1]
    first = psnr(torch.from_numpy(bicubic.transpose(2, 0, 1) / 255), expected[0][1].double(), 2)
    assert metric.results[0]["figures"]["PSNR_Y_bicubic"] == pytest.approx(first, abs=1e-3)
    equal = expected[0][2]["data_samples"]
    equal.set_field(equal.gt_image / 255, "pred_image")
    metric.results.clear()
    metric.process({"inputs": [expected[0][2]["inputs"]]}, [equal.to_dict()])
    assert metric.compute_metrics(metric.results)["PSNR_Y"] == 80
    for arguments in ({"border": -1}, {"channels": ("L",)}, {"channels": ()}):
        with pytest.raises(ConfigError):
            build(METRICS, type="visionattn.SuperResolutionMetric", **arguments)


def test_whole_images_are_tested_one_by_one(folder):
    config = load_config("catanet-small_x2_photos", ["val_dataloader.batch_size=4", f"data_root={folder}"])
    problems = find_problems(config, ("val",))
    assert "val_dataloader.batch_size must be 1 for whole images of different sizes, got 4" in problems
