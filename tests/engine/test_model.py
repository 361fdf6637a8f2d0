"""Loading trained models and using them on arrays."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.registry import MODELS, DefaultScope

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.build import quiet
from visionattn.engine.config.load import load_config
from visionattn.engine.model import find_run, load_model
from visionattn.errors import CheckpointError, ConfigError, DataError
from visionattn.inference import Predictor
from visionattn.inference.decoding import pixel_logits

SEGMENTOR = """
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmseg"
data_preprocessor = dict(type="SegDataPreProcessor", mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True, size=(64, 64),
                         pad_val=0, seg_pad_val=255)
model = dict(
    type="EncoderDecoder", data_preprocessor=data_preprocessor,
    backbone=dict(type="visionattn.Backbone", model_name="dinat_pico", out_indices=(0, 1, 2, 3)),
    decode_head=dict(type="FCNHead", in_channels=CHANNELS, in_index=3, channels=8, num_convs=1, num_classes=3,
                     norm_cfg=dict(type="GN", num_groups=2),
                     loss_decode=dict(type="CrossEntropyLoss")),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
test_dataloader = dict(dataset=dict(
    type="BaseSegDataset", metainfo=dict(classes=("sky", "road", "car"), palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    pipeline=[dict(type="LoadImageFromFile"), dict(type="Resize", scale=(64, 64), keep_ratio=True),
              dict(type="LoadAnnotations"), dict(type="PackSegInputs")]))
"""


def save_untrained(config_file: Path, path: Path, meta: dict | None = None) -> None:
    torch.manual_seed(0)
    config = load_config(config_file)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    checkpoints.write({"state_dict": model.state_dict(), "meta": meta or {}}, path)


@pytest.fixture
def detector(config_file, tmp_path):
    save_untrained(config_file, tmp_path / "w.pth", {"iter": 3, "dataset_meta": {"classes": ("red", "blue")}})
    return config_file, tmp_path / "w.pth"


def test_classes_come_from_the_checkpoint_where_the_data_is_not(detector, coco_dir, tmp_path):
    config, weights = detector
    known = load_config(config).custom_data.classes
    checkpoints.write({**checkpoints.read(weights), "meta": {"dataset_meta": {"classes": tuple(known)}}}, weights)
    away = tmp_path / "away.py"
    away.write_text(Path(config).read_text().replace(str(coco_dir), str(tmp_path / "nowhere")))
    loaded = load_model(away, weights)
    assert loaded.classes == tuple(known)
    assert loaded.cfg.model.bbox_head.num_classes == len(known)
    assert len(loaded.run([{"img": np.zeros((50, 70, 3), np.uint8), "img_id": 0}])) == 1
    checkpoints.write({**checkpoints.read(weights), "meta": {}}, weights)
    with pytest.raises(DataError, match=r"`?custom_data\.root`? must be an existing folder, got .*nowhere"):
        load_model(away, weights)


def test_detector(detector, coco_dir):
    loaded = load_model(*detector)
    assert (loaded.classes, loaded.meta["iter"]) == (("red", "blue"), 3)
    assert not loaded.model.training
    assert len(loaded.palette) == 2
    predictor = Predictor.from_model(loaded, score_thr=0)
    assert predictor.job.name == "detection"
    images = [np.zeros((50, 70, 3), np.uint8), cv2.imread(str(coco_dir / "images" / "000.png"))]
    for found, image in zip(predictor(images), images, strict=True):
        height, width = image.shape[:2]
        assert found.boxes.shape == (len(found.scores), 4)
        assert len(found) > 0
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.labels.dtype == np.int64
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= width).all()
        assert (found.boxes[:, 3] <= height).all()
        assert set(found.labels) <= {0, 1}
        assert found.masks is None
        assert found.semantic is None
        assert found.seconds > 0
    assert loaded.run([]) == []


def test_batch_gives_what_single_images_give(detector, coco_dir):
    predictor = Predictor.from_model(load_model(*detector), score_thr=0)
    images = [cv2.imread(str(p)) for p in sorted((coco_dir / "images").glob("*.png"))[:3]]
    for image, result in zip(images, predictor(images), strict=True):
        alone = predictor(image)
        np.testing.assert_allclose(alone.boxes, result.boxes, atol=1e-3)
        np.testing.assert_allclose(alone.scores, result.scores, atol=1e-5)


def test_array_pipeline_is_the_file_pipeline(detector, coco_dir):
    """The same prediction as mmdet's own way from the file."""
    from mmcv.transforms import Compose
    from mmengine.dataset import pseudo_collate

    loaded = load_model(*detector)
    file = coco_dir / "images" / "001.png"
    steps = [s for s in loaded.cfg.test_pipeline if s["type"] != "LoadAnnotations"]
    with DefaultScope.overwrite_default_scope("mmdet"):
        from mmengine.registry import TRANSFORMS

        pipeline = Compose([TRANSFORMS.build(s) for s in steps])
    with torch.no_grad():
        expected = loaded.model.test_step(pseudo_collate([pipeline({"img_path": str(file), "img_id": 0})]))[0]
    (result,) = loaded.run([{"img": cv2.imread(str(file)), "img_id": 0}])
    np.testing.assert_array_equal(result.pred_instances.bboxes.numpy(), expected.pred_instances.bboxes.numpy())


def test_segmentor(tmp_path):
    pytest.importorskip("mmseg")
    from visionattn.openmmlab import Backbone

    channels = Backbone("dinat_pico").num_features[3]
    config = tmp_path / "seg.py"
    config.write_text(SEGMENTOR.replace("CHANNELS", str(channels)))
    save_untrained(config, tmp_path / "w.pth")
    loaded = load_model(config, tmp_path / "w.pth")
    assert loaded.classes == ("sky", "road", "car")
    assert loaded.palette == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    predictor = Predictor.from_model(loaded)
    assert predictor.job.name == "semantic"
    found = predictor(np.zeros((40, 60, 3), np.uint8))
    assert found.semantic.shape == (40, 60)
    assert set(np.unique(found.semantic)) <= {0, 1, 2}
    assert found.boxes.shape == (0, 4)
    assert found.masks is None
    assert found.colors == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_what_does_not_fit_is_refused(detector):
    config_file, weights = detector
    with pytest.raises(CheckpointError, match=r"w\.pth: does not fit the model: .*for the 2 classes red, blue"):
        load_model(load_config(config_file, ["custom_data.classes=[a,b,c]"]), weights)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            load_model(config_file, weights, "cuda")


@pytest.mark.parametrize(
    ("meta", "note"),
    [
        ({"CLASSES": ("cat", "dog")}, "that of the config, since the file names 2 classes for a model of 3"),
        ({"dataset_meta": {"classes": ["a"] * 4, "category_ids": [1, 2, 3, 4]}}, "that of the config, since"),
        ({"CLASSES": 5}, ""),
        ({"dataset_meta": 7}, ""),
        ({"CLASSES": ("a", "b", "c"), "PALETTE": [[9, 9, 9]] * 3}, None),
    ],
)
def test_class_names_that_are_not_of_the_model(meta, note, tmp_path):
    pytest.importorskip("mmseg")
    from visionattn.openmmlab import Backbone

    config, weights = tmp_path / "seg.py", tmp_path / "w.pth"
    config.write_text(SEGMENTOR.replace("CHANNELS", str(Backbone("dinat_pico").num_features[3])))
    save_untrained(config, weights, meta)
    loaded = load_model(config, weights)
    assert loaded.classes == (("sky", "road", "car") if note is not None else ("a", "b", "c"))
    assert loaded.palette == ([(1, 2, 3), (4, 5, 6), (7, 8, 9)] if note is not None else [(9, 9, 9)] * 3)
    assert loaded.category_ids is None
    assert loaded.weights.settings.get("the list of classes", "").startswith(note or "")
    assert bool(loaded.weights.settings) == bool(note)


def test_find_run(tmp_path, detector):
    with pytest.raises(ConfigError, match="no such work dir"):
        find_run(tmp_path / "none")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConfigError, match="contains no config"):
        find_run(run)
    (run / "tiny.py").write_text("")
    with pytest.raises(CheckpointError, match="contains no checkpoint"):
        find_run(run)
    for name in ("iter_2.pth", "iter_4.pth"):
        checkpoints.write({"meta": {}}, run / name)
    assert find_run(run) == (run / "tiny.py", run / "iter_4.pth")
    checkpoints.write({"meta": {}}, run / "best_AP_iter_2.pth")
    assert find_run(run)[1] == run / "best_AP_iter_2.pth"
    (run / "best_AP_iter_2.pth").write_bytes(b"half")
    assert find_run(run)[1] == run / "iter_4.pth"


MASK_RCNN = """
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmdet"
anchors = dict(type="AnchorGenerator", scales=[4], ratios=[1.0], strides=[8, 16, 32])
coder = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
extractor = dict(type="SingleRoIExtractor", out_channels=8, featmap_strides=[8, 16, 32])
model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[0.0] * 3, std=[255.0] * 3, pad_size_divisor=32),
    backbone=dict(type="visionattn.Backbone", model_name="resnet10t", out_indices=(2, 3, 4),
                  channels=(8, 8, 8, 8), stem_width=4),
    neck=dict(type="FPN", in_channels=[8, 8, 8], out_channels=8, num_outs=3),
    rpn_head=dict(type="RPNHead", in_channels=8, feat_channels=8, anchor_generator=anchors, bbox_coder=coder),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(roi_layer=dict(type="RoIAlign", output_size=7), **extractor),
        bbox_head=dict(type="Shared2FCBBoxHead", in_channels=8, fc_out_channels=8, num_classes=2, bbox_coder=coder),
        mask_roi_extractor=dict(roi_layer=dict(type="RoIAlign", output_size=14), **extractor),
        mask_head=dict(type="FCNMaskHead", num_convs=1, in_channels=8, conv_out_channels=8, num_classes=2)),
    train_cfg=None,
    test_cfg=dict(
        rpn=dict(nms_pre=50, max_per_img=20, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=5, mask_thr_binary=0.5)))
test_dataloader = dict(dataset=dict(type="CocoDataset", metainfo=dict(classes=("a", "b")), pipeline=[
    dict(type="LoadImageFromFile"), dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "ori_shape", "img_shape", "scale_factor"))]))
"""


def test_instance_masks(tmp_path):
    config = tmp_path / "mask.py"
    config.write_text(MASK_RCNN)
    save_untrained(config, tmp_path / "w.pth")
    loaded = load_model(config, tmp_path / "w.pth")
    predictor = Predictor.from_model(loaded, score_thr=0)
    assert predictor.job.name == "instance"
    found = predictor(np.full((40, 60, 3), 120, np.uint8))
    assert np.asarray(found.masks).shape == (len(found), 40, 60)
    assert len(found) > 0
    nothing = Predictor.from_model(loaded, score_thr=1)(np.full((40, 60, 3), 120, np.uint8))
    assert np.asarray(nothing.masks).shape == (0, 40, 60)


@pytest.mark.parametrize("binary", [False, True])
def test_logits_make_the_map_and_scale_reaches_the_pipeline(tmp_path, binary):
    pytest.importorskip("mmseg")
    from visionattn.openmmlab import Backbone

    text = SEGMENTOR.replace("CHANNELS", str(Backbone("dinat_pico").num_features[3]))
    if binary:
        text = text.replace("num_classes=3", "num_classes=2, out_channels=1, threshold=0.4")
        text = text.replace('("sky", "road", "car"), palette=[[1, 2, 3], ', '("sky", "car"), palette=[')
        text = text.replace('"CrossEntropyLoss"', '"CrossEntropyLoss", use_sigmoid=True')
    config = tmp_path / "seg.py"
    config.write_text(text)
    save_untrained(config, tmp_path / "w.pth")
    loaded = load_model(config, tmp_path / "w.pth")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    sizes = []
    loaded.model.backbone.register_forward_hook(lambda module, args, output: sizes.append(tuple(args[0].shape[2:])))
    for scale in (1.0, 2.0):
        (output,) = loaded.run([{"img": image, "img_id": 0}], scale)
        logits = pixel_logits(output, 0.4)
        assert logits.shape == (2 if binary else 3, 64, 96)
        np.testing.assert_array_equal(logits.argmax(0), output.pred_sem_seg.data[0].numpy())
    assert max(sizes[1]) >= 2 * 64 > max(sizes[0][0], 64)


def test_category_ids_travel_with_the_checkpoint(coco_dir, make_config, tmp_path):
    import json
    import shutil

    from visionattn.engine.train.train import train

    ids = {1: 90, 2: 7}
    data = tmp_path / "data"
    shutil.copytree(coco_dir, data)
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        for record in content["categories"]:
            record["id"] = ids[record["id"]]
        for record in content["annotations"]:
            record["category_id"] = ids[record["category_id"]]
        (data / f"{split}.json").write_text(json.dumps(content))
    config = load_config(make_config(tmp_path / "tiny.py", data), ["train_cfg.max_iters=2", "train_cfg.val_interval=2"])
    train(config, work_dir=tmp_path / "run")
    shutil.rmtree(data)
    predictor = Predictor.from_run(tmp_path / "run", "cpu", score_thr=0)
    found = predictor(np.zeros((64, 64, 3), np.uint8))
    assert predictor.job.category_ids == (90, 7)
    assert {d["category_id"] for d in found.to_coco(0)} <= {90, 7}
    assert predictor.job.describe_model()["categories"] == [{"id": 90, "name": "red"}, {"id": 7, "name": "blue"}]
