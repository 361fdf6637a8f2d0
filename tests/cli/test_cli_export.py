import pytest
import torch

from visionattn.cli import main


def test_timm_model(tmp_path, capsys):
    out = tmp_path / "new" / "r.pt2"
    assert (
        main(["export", "resnet10t", "--features", "--size", "64", "96", "--dynamic", "batch", "--out", str(out)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("image 2x3x64x96 to 2x")
    assert lines[1] == "dynamic: batch"
    assert "for 2x3x64x96, 1x3x64x96, 3x3x64x96" in lines[2]
    assert lines[3].startswith(f"{out}, ")
    assert len(torch.export.load(out).module()(torch.randn(3, 3, 64, 96))) == 5


def test_run_of_a_segmentor_and_of_a_two_stage_detector(segmentor_run, mask_rcnn_run, tmp_path, capsys):
    """The segmentor to its maps, the detector to its boxes and masks, from pixels."""
    from visionattn.engine.model import find_run, load_model

    out = str(tmp_path / "s.pt2")
    assert main(["export", str(segmentor_run), "--size", "96", "--out", out]) == 0
    assert "image 1x3x96x96 to semantic 1x96x96, probabilities 1x3x96x96" in capsys.readouterr().out
    loaded = load_model(*find_run(segmentor_run))
    image = torch.randint(0, 256, (1, 3, 96, 96)).float()
    with torch.no_grad():
        prepare = loaded.model.data_preprocessor
        logits = loaded.model((image - prepare.mean) / prepare.std, mode="tensor")
    logits = torch.nn.functional.interpolate(logits, (96, 96), mode="bilinear")
    semantic, probabilities = torch.export.load(out).module()(image)
    torch.testing.assert_close(probabilities, logits.softmax(1))
    assert torch.equal(semantic.long(), logits.argmax(1))

    # A checkpoint of the run instead of its folder.
    checkpoint = str(find_run(mask_rcnn_run)[1])
    assert main(["export", checkpoint, "--size", "64", "96", "--out", str(tmp_path / "m.pt2")]) == 0
    text = capsys.readouterr().out
    assert "to boxes 1x300x4, scores 1x300, labels 1x300, count 1, masks 1x300x14x14" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exactly one of MODEL, --run and --config"),
        (["resnet10t", "--run", "r"], "exactly one of MODEL, --run and --config"),
        (["resnet10x"], "resnet10x"),
        (["resnet10t", "--out", "a.txt"], "--out must end in .pt2 or .onnx"),
        (["--model", "nuclei", "--out", "a.onnx", "--opset", "9"], "--opset must be in [18, "),
        (["resnet10t", "--model", "nuclei"], "exactly one of MODEL, --run and --config"),
        (["resnet10t", "--uint8"], "--uint8 applies to trained models only"),
        (["--model", "nuclei", "--max-detections", "0"], "--max-detections must be at least 1, got 0"),
        (["resnet10t", "--size", "1", "2", "3"], "--size must be one or two numbers"),
        (["--run", "gone", "--size", "64"], "no such work dir"),
        (["--model", "nuclei", "--int8", "--out", "a.onnx"], "--int8 requires --calibrate"),
        (
            ["--model", "nuclei", "--half", "--out", "a.pt2"],
            "--half and --int8 require --out, a file that ends in .onnx",
        ),
        (["--model", "nuclei", "--half", "--out", "a.onnx", "--calibrate", "x"], "--calibrate applies to --int8 only"),
        (["--model", "nuclei", "--half", "--out", "a.onnx", "--max-drop", "1"], "--max-drop must be in [0, 1), got 1"),
        (["--model", "nuclei", "--half", "--out", "a.onnx", "--max-drop", "0.01"], "data/nuclei"),
        (["--model", "nuclei", "--int8", "--out", "a.onnx", "--calibrate", "x"], "x: "),
        (["--model", "nuclei", "--half", "--out", "a.onnx", "--onnx", "b.onnx"], "--onnx is a whole model"),
        (["resnet10t", "--half", "--out", "a.onnx"], "--half and --int8 apply to trained models only"),
        (["--half", "--out", "a.onnx", "--onnx", "gone.onnx"], "gone.onnx: no such file"),
        (["resnet10t", "--max-drop", "0.1"], "--max-drop requires --half or --int8"),
        (["--run", "r", "--features"], "--features applies to timm models only"),
        (["--config", "c.py"], "c.py does not exist"),
        (["work_dirs/gone"], "work_dirs/gone: no such work dir"),
        (["gone.pth"], "--checkpoint requires --config"),
        (
            ["--config", "atss_dinat-pico_fpn_digits"],
            "no such work dir, so --config requires --checkpoint",
        ),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())
