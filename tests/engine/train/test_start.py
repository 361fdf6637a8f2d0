"""Starting from other weights: which parts are taken, which are new, what is said and recorded."""

import json
from copy import deepcopy

import pytest
import timm
import torch

pytest.importorskip("mmdet")

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from visionattn.backbones import load_official
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.build import quiet
from visionattn.engine.config.custom_data import set_num_classes
from visionattn.engine.config.load import load_config
from visionattn.engine.model import load_model
from visionattn.engine.train.finetune.sources import Source, find_source, use_pretrained
from visionattn.engine.train.finetune.start import start_from
from visionattn.engine.train.testing import test as measure
from visionattn.engine.train.train import _origin, train
from visionattn.errors import CheckpointError, ConfigError
from visionattn.io.weights import write_safetensors

measure.__test__ = False
CLASSES = ("ant", "bee", "cat")


def config_of(name: str, classes=CLASSES, **model) -> Config:
    """A config of this package with a COCO dataset of these classes, without files."""
    config = load_config(name, resolve_data=False)
    config.custom_data = None
    config.train_dataloader = dict(dataset=dict(type="CocoDataset", metainfo=dict(classes=tuple(classes))))
    set_num_classes(config.model, len(classes))
    for key, value in model.items():
        config.merge_from_dict({f"model.{key.replace('__', '.')}": value})
    return config


def build(config: Config, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(deepcopy(config.model))
    for parameter in model.parameters():  # also biases and norms differ between two models
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def save(model, path, classes=CLASSES):
    checkpoints.write({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": list(classes)}}}, path)
    return Source("source", path)


def load(config: Config, source: Source):
    """Start a model from a source: the model, what was selected, and the tensors before."""
    model = build(config, 1)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    started = start_from(model, config, source)
    model.load_state_dict(started.weights, strict=False)
    return model, started, before


ATSS, MASK_RCNN = "atss_dinat-pico_fpn_coco_custom", "mask-rcnn_dinat-pico_fpn_coco_custom"


def test_same_model(tmp_path):
    config = config_of(ATSS)
    other = build(config)
    model, started, _ = load(config, save(other, tmp_path / "a.pth"))
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
    assert started.lines == ["from source: backbone 177 of 177 tensors, neck 21 of 21, bbox_head 22 of 22"]
    assert started.record["sha256"]


def test_other_classes(tmp_path):
    """The same number of other classes, and another number."""
    other = build(config_of(ATSS))
    source = save(other, tmp_path / "a.pth")
    for classes in (("dog", "eel", "fox"), ("ant", "bee"), (*CLASSES, "dog")):
        model, started, before = load(config_of(ATSS, classes), source)
        for name, tensor in model.state_dict().items():
            expected = before if "atss_cls" in name else other.state_dict()
            assert torch.equal(tensor, expected[name]), name
        assert started.lines[0].endswith("bbox_head 20 of 22")
        assert started.lines[1] == f"new for the classes {', '.join(classes)} (were ant, bee, cat): bbox_head.atss_cls"


def test_other_classes_of_two_heads(tmp_path):
    """One line says so for all heads."""
    source = save(build(config_of(MASK_RCNN)), tmp_path / "a.pth")
    started = load(config_of(MASK_RCNN, ("ant", "dog")), source)[1]
    assert started.lines[1:] == [
        "new for the classes ant, dog (were ant, bee, cat): roi_head.bbox_head.fc_cls, roi_head.mask_head.conv_logits"
    ]


def test_batch_norms(tmp_path):
    """A head with batch norms is loaded, with their statistics and counters; or not, and the line says why."""
    config = load_config("semantic-fpn_dinat-pico_masks_custom", resolve_data=False)
    config.train_dataloader, config.model.decode_head.num_classes = None, 3
    other = build(config)
    for buffer in other.decode_head.buffers():
        buffer.fill_(7)
    source = save(other, tmp_path / "a.pth")
    model, started, _ = load(config, source)
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
    assert int(next(t for n, t in model.state_dict().items() if n.endswith("num_batches_tracked"))) == 7
    assert "new" not in started.lines[0]
    without = {n: t for n, t in other.state_dict().items() if not n.endswith("num_batches_tracked")}  # old files
    checkpoints.write({"state_dict": without}, tmp_path / "b.pth")
    assert load(config, Source("source", tmp_path / "b.pth"))[1].lines == started.lines
    config.model.decode_head.channels *= 2
    assert "decode_head new (FPNHead, shapes differ)" in load(config, source)[1].lines[0]


ORDER = ("cat", "ant", "bee")
PERMUTED = [2, 0, 1]


@pytest.mark.parametrize("anchors", [1, 3])
def test_order_of_classes(tmp_path, anchors):
    ratios = {"bbox_head__anchor_generator__ratios": [0.5, 1.0, 2.0][:anchors]}
    other = build(config_of(ATSS, **ratios))
    model, started, _ = load(config_of(ATSS, ORDER, **ratios), save(other, tmp_path / "a.pth"))
    assert started.lines == [
        "from source: backbone 177 of 177 tensors, neck 21 of 21, bbox_head 22 of 22",
        "reordered to the classes cat, ant, bee (in source ant, bee, cat): bbox_head.atss_cls",
    ]
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (ours, boxes, _), (theirs, other_boxes, _) = (
            model.eval()(image, mode="tensor"),
            other.eval()(image, mode="tensor"),
        )
    for mine, yours in zip(ours, theirs, strict=True):  # [1, anchors * classes, h, w]
        scores = mine.unflatten(1, (anchors, 3))
        assert torch.allclose(scores, yours.unflatten(1, (anchors, 3))[:, :, PERMUTED], atol=1e-6)
        assert not torch.allclose(mine, yours, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(boxes, other_boxes, strict=True))


def test_order_of_classes_with_boxes_and_masks_per_class(tmp_path):
    options = {"roi_head__bbox_head__reg_class_agnostic": False}
    other = build(config_of(MASK_RCNN, **options))
    model, started, _ = load(config_of(MASK_RCNN, ORDER, **options), save(other, tmp_path / "a.pth"))
    assert started.lines[1:] == [
        "reordered to the classes cat, ant, bee (in source ant, bee, cat): roi_head.bbox_head.fc_cls, "
        "roi_head.bbox_head.fc_reg, roi_head.mask_head.conv_logits"
    ]
    regions = torch.randn(2, 64, 7, 7)
    with torch.no_grad():
        (scores, boxes), (their_scores, their_boxes) = (m.roi_head.bbox_head(regions) for m in (model, other))
        masks, their_masks = (m.roi_head.mask_head(torch.randn(1, 64, 14, 14)[:1] * 0 + 1) for m in (model, other))
    assert torch.allclose(scores, their_scores[:, [*PERMUTED, 3]], atol=1e-6), "the background stays last"
    assert torch.allclose(boxes.unflatten(1, (3, 4)), their_boxes.unflatten(1, (3, 4))[:, PERMUTED], atol=1e-6)
    assert torch.allclose(masks, their_masks[:, PERMUTED], atol=1e-6)


def test_another_job():
    """The model of nuclei, a Mask R-CNN, into an ATSS."""
    config = config_of("atss_dinat-pico_fpn_bccd")
    model, started, before = load(config, find_source("nuclei"))
    given = checkpoints.read(find_source("nuclei").file)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name].float() if name.startswith("backbone.") else before[name]), name
    assert started.lines == [
        "from nuclei: backbone 177 of 177 tensors, neck new (FPN, names differ), bbox_head new (ATSSHead)",
        "not used from nuclei: neck, roi_head.bbox_head, roi_head.mask_head, rpn_head",
    ]


def test_same_neck_and_another_head(tmp_path):
    config = config_of(ATSS)
    model = build(config)
    weights = {n.replace("bbox_head.atss_", "bbox_head.retina_"): t for n, t in model.state_dict().items()}
    checkpoints.write({"state_dict": weights}, tmp_path / "a.pth")
    started = load(config, Source("a.pth", tmp_path / "a.pth"))[1]
    assert (
        started.lines[0]
        == "from a.pth: backbone 177 of 177 tensors, neck 21 of 21, bbox_head new (ATSSHead, names differ)"
    )


def test_one_more_head(tmp_path):
    """From Faster R-CNN to Mask R-CNN."""
    config = config_of(MASK_RCNN)
    weights = {n: t for n, t in build(config).state_dict().items() if "mask_head" not in n}
    checkpoints.write({"state_dict": weights}, tmp_path / "a.pth")
    line = load(config, Source("a.pth", tmp_path / "a.pth"))[1].lines[0]
    assert "roi_head.mask_head new (FCNMaskHead)" in line
    assert "rpn_head 6 of 6, roi_head.bbox_head 8 of 8" in line


@pytest.mark.parametrize("meta", ["hello", 3, {"CLASSES": 5}, {"dataset_meta": "x"}, {"dataset_meta": {"classes": 5}}])
def test_malformed_metadata(tmp_path, meta):
    """Counts as absent, here and for the other uses of a checkpoint."""
    config = config_of(ATSS)
    config.test_dataloader.dataset.metainfo = dict(classes=CLASSES)
    torch.save({"state_dict": build(config).state_dict(), "meta": meta}, tmp_path / "a.pth")
    started = load(config, Source("a", tmp_path / "a.pth"))[1]
    assert started.lines == ["from a: backbone 177 of 177 tensors, neck 21 of 21, bbox_head 22 of 22"]
    assert (started.record["config_name"], started.record["iter"]) == (None, None)
    assert load_model(config, tmp_path / "a.pth").classes == CLASSES


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_unused_parts_of_a_detector_under_a_prefix(tmp_path, prefix):
    weights = {
        n.replace("backbone.net.model.", "backbone."): t for n, t in build(config_of(MASK_RCNN)).state_dict().items()
    }
    torch.save({"state_dict": {f"{prefix}{n}": t for n, t in weights.items()}}, tmp_path / "a.pth")
    started = load(config_of(ATSS), Source("a", tmp_path / "a.pth"))[1]
    assert started.lines[0].startswith("from a: backbone 177 of 177 tensors, neck ")
    unused = started.lines[-1].removeprefix("not used from a: ").split(", ")
    assert {"roi_head.bbox_head", "roi_head.mask_head", "rpn_head"} <= set(unused), started.lines


def test_arguments_of_a_published_backbone(tmp_path):
    """BiFormer adopts them, and the config of the run has them, so that its checkpoints build the same network."""
    torch.save({"model": timm.create_model("biformer_tiny").state_dict()}, tmp_path / "cls.pth")
    config = config_of(ATSS, backbone__model_name="biformer_tiny", neck__in_channels=[128, 256, 512])
    config.model.backbone.pop("dilations", None)
    model, started, _ = load(config, Source("cls", tmp_path / "cls.pth"))
    adopted = model.backbone.net.model._model_args
    assert any(line.startswith(f"padding is {adopted['padding']!r}") for line in started.lines), started.lines
    assert config.model.backbone.padding == adopted["padding"]
    assert build(config).backbone.net.model.chosen["padding"] == adopted["padding"]
    # also if the run is resumed with the original config, which does not set it
    meta = {"started_from": started.record, "adopted": started.adopted}
    checkpoints.write({"meta": meta, "state_dict": model.state_dict()}, tmp_path / "iter_1.pth")
    config.model.backbone.padding = None
    assert _origin(config, None, tmp_path / "iter_1.pth", "tiny.py", None) is None
    assert config.model.backbone.padding == adopted["padding"]
    config.model.backbone.padding = "masked"
    _origin(config, None, tmp_path / "iter_1.pth", "tiny.py", None)
    assert config.model.backbone.padding == "masked", "set by the user"
    # inference and evaluation with the original config
    config.model.backbone.padding = None
    assert load_model(config, tmp_path / "iter_1.pth").model.backbone.net.model.chosen["padding"] == adopted["padding"]


def test_adopted_arguments_of_an_untrusted_file():
    good = {"model.backbone.padding": "input", "model.net.backbone.global_lepe": "masked"}
    bad = {
        "model.backbone.pretrained": "x", "model.backbone.init_cfg": "x", "model.backbone.type": "x", "work_dir": "x",
        "model.backbone.padding.x": {"type": "Pretrained"}, "model.backbone.other": "/tmp/a.pth", 5: "x",
    }  # fmt: skip
    assert checkpoints.adopted_arguments({"meta": {"adopted": good | bad}}) == good
    for meta in ("text", {"adopted": "text"}, {}):
        assert checkpoints.adopted_arguments({"meta": meta}) == {}


def test_other_levels(tmp_path):
    """An output norm that the source lacks is new."""
    config = config_of(ATSS)
    other = build(config)
    weights = {n: t for n, t in other.state_dict().items() if "backbone.norm1" not in n}
    checkpoints.write({"state_dict": weights}, tmp_path / "a.pth")
    model, started, before = load(config, Source("a", tmp_path / "a.pth"))
    assert started.lines[0].startswith("from a: backbone 175 of 177 tensors, neck 21 of 21")
    assert started.lines[1] == "new in backbone: norm1.bias, norm1.weight"
    assert torch.equal(model.backbone.norm1.weight, before["backbone.norm1.weight"])
    assert torch.equal(model.backbone.norm2.weight, other.backbone.norm2.weight)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_classifier(tmp_path, suffix):
    """Of a family of this package, as its authors publish it."""
    torch.manual_seed(5)
    classifier = timm.create_model("dinat_pico", num_classes=7)
    weights = classifier.state_dict()
    if suffix == ".pth":
        torch.save({"state_dict": weights}, tmp_path / "cls.pth")
    else:
        write_safetensors(tmp_path / "cls.safetensors", weights, {})
    model, started, before = load(config_of(ATSS), Source("cls", tmp_path / f"cls{suffix}"))
    net = model.backbone.net.model
    half = suffix == ".safetensors"  # is written in half precision
    assert torch.allclose(
        net.levels[2].blocks[0].mlp.fc1.weight, weights["levels.2.blocks.0.mlp.fc1.weight"], atol=1e-3 * half
    )
    assert started.lines[0].startswith(
        "from cls: backbone 171 of 177 tensors, neck new (FPN), bbox_head new (ATSSHead)"
    )
    assert torch.equal(model.neck.lateral_convs[0].conv.weight, before["neck.lateral_convs.0.conv.weight"])


def test_classifier_of_timm(tmp_path):
    torch.manual_seed(5)
    classifier = timm.create_model("convnext_atto", num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "cls.pth")
    config = config_of(ATSS, backbone__model_name="convnext_atto", neck__in_channels=[80, 160, 320])
    model, started, _ = load(config, Source("cls.pth", tmp_path / "cls.pth"))
    own = classifier.state_dict()
    assert torch.equal(model.backbone.net.stages_2.blocks[1].mlp.fc1.weight, own["stages.2.blocks.1.mlp.fc1.weight"])
    count = len(model.backbone.state_dict())
    assert started.lines[0].startswith(f"from cls.pth: backbone {count} of {count} tensors")


def test_other_backbones(tmp_path):
    torch.save(timm.create_model("dinat_s_tiny").state_dict(), tmp_path / "s.pth")
    with pytest.raises(
        CheckpointError, match=r"^s.pth: the checkpoint does not fit DiNAT: .*checkpoint of dinat_s_tiny"
    ):
        load(config_of(ATSS), Source("s.pth", tmp_path / "s.pth"))
    other = config_of(ATSS, backbone__model_name="resnet10t", neck__in_channels=[64, 128, 256])
    with pytest.raises(CheckpointError, match="nuclei: does not match the backbone resnet10t"):
        load(other, find_source("nuclei"))


def test_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_source("digits").file.name == "digits.safetensors"
    assert find_source("resnet18.a1_in1k") == Source("resnet18.a1_in1k", None)
    (tmp_path / "mine.pth").touch()
    assert find_source("mine.pth").file.name == "mine.pth"
    for name, hint in (
        ("nuclie", "did you mean nuclei"),
        ("mime.pth", "did you mean mine.pth"),
        ("dinat_mni", "dinat_mini"),
    ):
        with pytest.raises(ConfigError, match=f"`start_from` '{name}' is neither.*{hint}"):
            find_source(name)


def test_download_of_a_published_model_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="or give it as `start_from`"):
        find_source("mask-rcnn_davit-tiny_1x_coco")


def test_pretrained_of_timm():
    config = config_of(ATSS, backbone__model_name="resnet18")
    use_pretrained(config, Source("resnet18.a1_in1k", None))
    assert (config.model.backbone.model_name, config.model.backbone.pretrained) == ("resnet18.a1_in1k", True)
    with pytest.raises(ConfigError, match="'resnet34' does not fit the backbone resnet18"):
        use_pretrained(config_of(ATSS, backbone__model_name="resnet18"), Source("resnet34", None))
    with pytest.raises(ConfigError, match=r"or start from resnet18$"):
        use_pretrained(config_of(ATSS, backbone__model_name="resnet18"), Source("resnet34", None))
    with pytest.raises(ConfigError, match=r"or start from a model or file with the backbone dinat_pico$"):
        use_pretrained(config_of(ATSS), Source("resnet18", None))
    for name in ("dinat_pico", "resnet18.typo"):
        with pytest.raises(ConfigError, match=f"`start_from` '{name}': this timm model has no such pretrained weights"):
            find_source(name)


def test_a_failed_start_leaves_no_files(tmp_path, coco_dir, make_config):
    """Neither a folder for a file that is not a checkpoint, nor for one that does not fit."""
    config = make_config(tmp_path / "tiny.py", coco_dir)
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html></html>")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("page.pth", "other.pth"):
        with pytest.raises(CheckpointError, match=name):
            train(load_config(config), work_dir=tmp_path / "run", start_from=tmp_path / name)
        assert not (tmp_path / "run").exists()


def test_a_run_from_a_run(tmp_path, coco_dir, make_config, capsys):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    options = {"train_cfg.max_iters": 4, "train_cfg.val_interval": 4}
    first = train(load_config(config, options), work_dir=tmp_path / "first")
    still = {**options, "optim_wrapper.optimizer.lr": 0.0, "model.backbone.norm_eval": True}
    second = train(load_config(config, still), work_dir=tmp_path / "second", start_from=str(tmp_path / "first"))
    out = capsys.readouterr().out
    ours, theirs = checkpoints.read(second.checkpoint), checkpoints.read(first.best)
    names = [n.split(".")[0] for n in theirs["state_dict"] if not n.endswith("num_batches_tracked")]
    b, n, h = (f"{names.count(part)} of {names.count(part)}" for part in ("backbone", "neck", "bbox_head"))
    assert f"from {tmp_path / 'first'}: backbone {b} tensors, neck {n}, bbox_head {h}\n" in out
    assert all(torch.equal(w, theirs["state_dict"][n]) for n, w in ours["state_dict"].items())
    record = ours["meta"]["started_from"]
    assert (record["source"], record["file"]) == (str(tmp_path / "first"), str(first.best))
    assert record["loaded"][0].startswith("from ")
    assert load_config(tmp_path / "second/tiny.py").start_from == str(tmp_path / "first")

    # resumed: not loaded again, and still recorded
    longer = {**still, "train_cfg.max_iters": 6, "train_cfg.val_interval": 6, "optim_wrapper.optimizer.lr": 0.01}
    third = train(load_config(config, longer), work_dir=tmp_path / "second", start_from="digits", resume=True)
    assert "the weights of digits are not loaded again, as the run is resumed" in capsys.readouterr().out
    assert checkpoints.read(third.checkpoint)["meta"]["started_from"] == record
    assert load_config(tmp_path / "second/tiny.py").start_from == str(tmp_path / "first")
    measure(load_config(config), third.checkpoint, tmp_path / "out")
    assert json.loads((tmp_path / "out/results.json").read_text())["started_from"]["sha256"] == record["sha256"]

    # --resume without a checkpoint starts a new run from the source
    train(load_config(config, still), work_dir=tmp_path / "new", start_from=str(first.best), resume=True)
    assert f"from {first.best}: backbone" in capsys.readouterr().out


def test_published_detector(shared_dir, tmp_path):
    """The backbone of a published detector under the authors' names."""
    fixture = torch.load(shared_dir / "parity/dinat/dinat_dense_detection_mini_256x320.pt", weights_only=True)
    net = timm.create_model("dinat_mini", dilations="detection")
    weights = {f"backbone.{n}": t for n, t in net.state_dict().items() if not n.startswith(("head", "norm"))}
    weights |= {
        f"backbone.norm{i}.{k}": torch.full((c,), 0.5)
        for i, c in enumerate((64, 128, 256, 512))
        for k in ("weight", "bias")
    }
    torch.save({"state_dict": weights}, tmp_path / "det.pth")
    assert fixture["meta"]["dilations"]
    config = config_of(MASK_RCNN, backbone__model_name="dinat_mini", neck__in_channels=[64, 128, 256, 512])
    model, started, _ = load(config, Source("det.pth", tmp_path / "det.pth"))
    assert "neck new (FPN)" in started.lines[0]
    assert float(model.backbone.norm3.bias[0]) == 0.5
    reference = timm.create_model("dinat_mini", features_only=True)
    load_official(reference, weights)
    assert torch.equal(
        model.backbone.net.model.levels[1].blocks[0].attn.rpb, reference.model.levels[1].blocks[0].attn.rpb
    )
