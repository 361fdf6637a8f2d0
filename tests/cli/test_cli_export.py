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
    """The segmentor to its logits, its pixels normalized in the file; the detector to its neck."""
    from visionattn.engine.model import find_run, load_model

    out = str(tmp_path / "s.pt2")
    assert main(["export", str(segmentor_run), "--size", "96", "--out", out]) == 0
    assert "image 1x3x96x96 to 1x3x24x24" in capsys.readouterr().out
    loaded = load_model(*find_run(segmentor_run))
    image = torch.randint(0, 256, (1, 3, 96, 96)).float()
    with torch.no_grad():
        prepare = loaded.model.data_preprocessor
        expected = loaded.model((image - prepare.mean) / prepare.std, mode="tensor")
    torch.testing.assert_close(torch.export.load(out).module()(image)[0], expected)

    # A checkpoint of the run instead of its folder.
    checkpoint = str(find_run(mask_rcnn_run)[1])
    assert main(["export", checkpoint, "--size", "64", "96", "--out", str(tmp_path / "m.pt2")]) == 0
    assert "to 1x32x16x24, 1x32x8x12, 1x32x4x6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exactly one of MODEL, --run and --config"),
        (["resnet10t", "--run", "r"], "exactly one of MODEL, --run and --config"),
        (["resnet10x"], "resnet10x"),
        (["resnet10t", "--out", "a.txt"], "--out must end in .pt2 or .onnx"),
        (["resnet10t", "--size", "1", "2", "3"], "--size must be one or two numbers"),
        (["--run", "gone", "--size", "64"], "no such work dir"),
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
