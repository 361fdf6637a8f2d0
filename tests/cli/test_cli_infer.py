import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.server import file_answer
from PIL import Image

from visionattn.cli import main
from visionattn.inference.video import VideoWriter

CONFIG = """
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmdet"
model = dict(
    type="ATSS",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True,
        pad_size_divisor=32),
    backbone=dict(type="visionattn.Backbone", model_name="resnet10t", out_indices=(2, 3, 4),
                  channels=(8, 8, 8, 8), stem_width=4),
    neck=dict(type="FPN", in_channels=[8, 8, 8], out_channels=8, num_outs=3),
    bbox_head=dict(
        type="ATSSHead", num_classes=2, in_channels=8, stacked_convs=1, feat_channels=8,
        norm_cfg=dict(type="GN", num_groups=4, requires_grad=True),
        anchor_generator=dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=4, scales_per_octave=1,
                              strides=[8, 16, 32]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0)),
    train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.6),
                  max_per_img=6))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset", ann_file="none.json", test_mode=True, metainfo=dict(classes=("red", "blue")),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(64, 64), keep_ratio=True),
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ]))
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A work dir as training leaves it: the config and a checkpoint, of weights that nobody trained."""
    pytest.importorskip("mmdet")
    from mmengine.registry import MODELS, DefaultScope

    from visionattn.engine.config.load import load_config

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    (folder / "tiny.py").write_text(CONFIG)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(load_config(folder / "tiny.py")["model"])
    meta = {"dataset_meta": {"classes": ["red", "blue"]}, "iter": 8}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / "best_coco_bbox_mAP_iter_8.pth")
    return folder


@pytest.fixture
def shots(tmp_path) -> Path:
    """Two pictures of one name, and two files that are none."""
    rng = np.random.default_rng(0)
    for name in ("a/x.png", "b/x.jpg"):
        (tmp_path / "shots" / name).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(tmp_path / "shots" / name)
    data = (tmp_path / "shots" / "b" / "x.jpg").read_bytes()
    (tmp_path / "shots" / "b" / "cut.jpg").write_bytes(data[: len(data) // 2])
    return tmp_path / "shots"


def error_of(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_folder_with_a_broken_file(run_dir, shots, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["infer", str(shots), "--run", str(run_dir), "--out", str(out), "--score-thr", "0", "--device", "cpu"]
    assert main(argv) == 1
    printed = capsys.readouterr()
    assert "2 images, 1 input failed" in printed.out
    assert "detections: 12 (" in printed.out
    assert f"results: {out}" in printed.out
    assert printed.err.count("skipped: ") == 1
    assert "Warning" not in printed.err
    assert f"{shots / 'b' / 'cut.jpg'}: damaged or truncated" in printed.err
    content = json.loads((out / "predictions.json").read_text())
    assert content["model"]["config"] == str(run_dir / "tiny.py")
    assert content["model"]["checkpoint"].endswith("best_coco_bbox_mAP_iter_8.pth")
    assert content["model"]["task"] == "detection"
    assert [c["name"] for c in content["categories"]] == ["red", "blue"]
    broken, first, second = sorted(content["images"], key=lambda r: len(r.get("detections", ())) * 10 + r["image_id"])
    assert "error" in broken
    for record in (first, second):
        assert (record["width"], record["height"]) == (100, 80)
        assert len(record["detections"]) == 6
        for detection in record["detections"]:
            x, y, w, h = detection["bbox"]
            assert -1e-3 <= x <= x + w <= 100.01
            assert -1e-3 <= y <= y + h <= 80.01
        overlay = np.asarray(Image.open(out / record["overlay"]))
        original = np.asarray(Image.open(record["file"]))
        assert overlay.shape == original.shape
        assert (overlay != original).any()
    assert {first["overlay"], second["overlay"]} == {"x_png.png", "x_jpg.png"}
    page = (out / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 2
    assert "cut.jpg: damaged or truncated" in page
    assert "images: 2; failed: 1, shown first; " in page


def test_config_that_is_wrong_is_told_before_the_weights_are_read(run_dir, shots, tmp_path, capsys):
    text = (run_dir / "tiny.py").read_text().replace('"ATSSHead"', '"ATSHead"').replace('"Resize"', '"Resise"')
    (tmp_path / "bad.py").write_text(text)
    argv = ["infer", str(shots), "--config", str(tmp_path / "bad.py"), "--checkpoint", "gone.pth"]
    assert main(argv) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: bad.py: 2 problems"
    assert "did you mean ATSSHead" in lines[1]
    assert "test_dataloader.dataset.pipeline.1.type='Resise'" in lines[2]


def test_config_and_checkpoint_with_tiles_and_tta(run_dir, shots, tmp_path, capsys):
    checkpoint = run_dir / "best_coco_bbox_mAP_iter_8.pth"
    argv = ["infer", str(shots / "**" / "x.*"), "--config", str(run_dir / "tiny.py"), "--checkpoint", str(checkpoint)]
    argv += ["--out", str(tmp_path / "o"), "--tile", "64", "--overlap", "20", "--tta", "--score-thr", "0"]
    assert main([*argv, "--batch-size", "2", "--device", "cpu"]) == 0
    content = json.loads((tmp_path / "o" / "predictions.json").read_text())
    assert content["settings"]["tile"] == 64
    assert content["settings"]["tta"] is True
    assert all(r["detections"] for r in content["images"])


def test_batch_size_does_not_change_the_result(run_dir, tmp_path):
    rng = np.random.default_rng(1)
    paths = []
    for index, size in enumerate([(80, 100), (60, 60), (80, 100)]):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
    found = []
    for batch_size in ("1", "4"):
        out = tmp_path / f"out{batch_size}"
        argv = ["infer", *paths, "--run", str(run_dir), "--out", str(out), "--score-thr", "0", "--device", "cpu"]
        assert main([*argv, "--batch-size", batch_size]) == 0
        records = json.loads((out / "predictions.json").read_text())["images"]
        found.append(np.array([[*d["bbox"], d["score"]] for r in records for d in r["detections"]]))
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


def test_video(run_dir, tmp_path, capsys):
    with VideoWriter(tmp_path / "v.mp4", 64, 48, 10) as writer:
        for index in range(5):
            writer.write(np.full((48, 64, 3), 20 * index, np.uint8))
    out = tmp_path / "out"
    argv = ["infer", str(tmp_path / "v.mp4"), "--run", str(run_dir), "--out", str(out), "--device", "cpu"]
    assert main(argv) == 0
    assert "0 images, 1 video with 5 frames" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"v.webm", "v.frames.json", "predictions.json", "report.html"}


def test_default_folder_is_new_and_named_after_the_run(run_dir, shots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["infer", str(shots / "a"), "--run", str(run_dir), "--device", "cpu"]) == 0
    (folder,) = (tmp_path / "outputs" / "infer").iterdir()
    assert folder.name.startswith("tiny-2")
    assert (folder / "predictions.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model given; give --model, --run, --onnx, or --config and --checkpoint"),
        (["--run", "r", "--config", "c"], "remove --config, or --run"),
        (["--run", "r", "--checkpoint", "c"], "remove --checkpoint, or --run"),
        (["--config", "c"], "c: no such work dir, config or model"),
        (["--checkpoint", "c"], "--checkpoint requires --config"),
        (["--run", "gone"], "gone: no such work dir"),
        (["--config", "gone.py", "--checkpoint", "w.pth"], "gone.py"),
        (["--run", "r", "--score-thr", "2"], "--score-thr must be in [0, 1], got 2.0"),
        (["--run", "r", "--overlap", "9"], "--overlap has no effect without --tile"),
        (["--run", "r", "--tile", "64", "--overlap", "64"], "--overlap must be"),
        (["--run", "r", "--batch-size", "0"], "--batch-size must be"),
        (["--run", "r", "--device", "tpu9"], "tpu9"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, shots, capsys, monkeypatch):
    monkeypatch.chdir(shots)
    assert main(["infer", str(shots / "a"), *arguments]) == 1
    assert words in error_of(capsys)
    assert {p.name for p in shots.iterdir()} == {"a", "b"}  # nothing was written


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["empty"], "empty: the folder contains no image"),
        (["gone.jpg"], "gone.jpg: no such file"),
        (["*.webp"], "*.webp: the glob pattern has no matches"),
    ],
)
def test_wrong_inputs_are_one_line(inputs, words, run_dir, shots, capsys, monkeypatch):
    monkeypatch.chdir(shots)
    (shots / "empty").mkdir()
    assert main(["infer", *inputs, "--run", str(run_dir), "--device", "cpu"]) == 1
    assert words in error_of(capsys)


def test_only_broken_inputs(run_dir, shots, tmp_path, capsys):
    argv = ["infer", str(shots / "b" / "cut.jpg"), "--run", str(run_dir), "--out", str(tmp_path / "o")]
    assert main([*argv, "--device", "cpu"]) == 1
    assert "none of the inputs could be processed" in capsys.readouterr().err


def test_out_that_holds_the_input(run_dir, shots, capsys):
    before = (shots / "a" / "x.png").read_bytes()
    argv = ["infer", str(shots / "a" / "x.png"), "--run", str(run_dir), "--out", str(shots / "a"), "--device", "cpu"]
    assert main(argv) == 1
    assert "would overwrite the input" in error_of(capsys)
    assert (shots / "a" / "x.png").read_bytes() == before


def test_addresses_and_files_of_detections(run_dir, shots, tmp_path, capsys, server):
    body = (shots / "a" / "x.png").read_bytes()
    url = server.url("/x.png", file_answer(body))
    gone = server.url("/gone.png", lambda handler: handler.send_error(404))
    argv = ["infer", url, gone, "--run", str(run_dir), "--out", str(tmp_path / "out"), "--score-thr", "0"]
    options = ["--device", "cpu", "--save-txt", "--save-crops", "--hide-labels", "--alpha", "0.5"]
    assert main([*argv, *options]) == 1
    printed = capsys.readouterr()
    assert f"skipped: cannot download {gone}: the server returned 404" in printed.out
    out = tmp_path / "out"
    content = json.loads((out / "predictions.json").read_text())
    assert content["model"]["downloaded"] == {str(out / "inputs" / "x.png"): url}
    assert content["settings"]["opacity"] == 0.5
    (record,) = content["images"]
    assert (out / "inputs" / "x.png").read_bytes() == body
    assert len(record["detections"]) == len((out / record["labels"]).read_text().splitlines()) == 6
    assert len([path for path in record["crops"] if path and (out / path).is_file()]) == 6
    results = json.loads((out / "results.bbox.json").read_text())
    assert results == [{k: d[k] for k in ("image_id", "category_id", "bbox", "score")} for d in record["detections"]]
    hidden = np.asarray(Image.open(out / record["overlay"]))
    assert main([*argv[:2], *argv[3:], "--device", "cpu"]) == 0
    assert (np.asarray(Image.open(out / record["overlay"])) != hidden).any()  # labels


def test_nothing_is_left_to_predict_on(run_dir, tmp_path, capsys, server):
    gone = server.url("/gone.png", lambda handler: handler.send_error(404))
    assert main(["infer", gone, "--run", str(run_dir), "--out", str(tmp_path / "out")]) == 1
    assert error_of(capsys).startswith(f"error: cannot download {gone}: the server returned 404")
