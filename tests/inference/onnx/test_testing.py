"""``visionattn test --onnx``: exported files in mmengine's test loop."""

import numpy as np
import pytest
import torch
from fixtures.programs import save_program

pytest.importorskip("mmdet")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from mmdet.structures import DetDataSample

from visionattn.cli import main
from visionattn.errors import ConfigError
from visionattn.inference.onnx.testing import OnnxProgram, config_of


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """One box for each channel, (1, 2, 3, 4), with the mean of the channel as score; two of them count."""
    nodes = [
        (("ReduceMean", ["image", "axes"], ["scores"]), {"keepdims": 0}),
        (("Shape", ["image"], ["batch"]), {"end": 1}),
        (("Concat", ["batch", "three"], ["rows"]), {"axis": 0}),
        (("Concat", ["rows", "four"], ["corners"]), {"axis": 0}),
        (("Expand", ["names", "rows"], ["labels"]), {}),
        (("Expand", ["box", "corners"], ["boxes"]), {}),
        (("Expand", ["two", "batch"], ["count"]), {}),
    ]
    weights = {
        "axes": np.array([2, 3]), "three": np.array([3]), "four": np.array([4]), "two": np.array([2]),
        "names": np.arange(3), "box": np.array([1, 2, 3, 4], np.float32),
    }  # fmt: skip
    outputs = {
        "boxes": (1, ["batch", 3, 4]), "scores": (1, ["batch", 3]), "labels": (7, ["batch", 3]), "count": (7, ["batch"])
    }  # fmt: skip
    path = tmp_path_factory.mktemp("onnx") / "a.onnx"
    return save_program(path, nodes, weights, outputs, config="atss_dinat-pico_fpn_digits.py")


def test_predictions_of_a_batch(program):
    """Images are BGR; boxes refer to the original image, here twice as large."""
    images = [torch.full((3, 24, 32), 10 * (i + 1), dtype=torch.uint8) for i in range(2)]
    images[1][0] = 90  # blue
    samples = [DetDataSample(metainfo={"img_id": i, "ori_shape": (48, 64), "img_shape": (24, 32)}) for i in range(2)]
    found = OnnxProgram(program).test_step({"inputs": images, "data_samples": samples})
    assert [sample["img_id"] for sample in found] == [0, 1]
    first, second = (sample["pred_instances"] for sample in found)
    torch.testing.assert_close(first["bboxes"], torch.tensor([[2.0, 4, 6, 8]] * 2))
    torch.testing.assert_close(first["scores"], torch.tensor([10.0, 10]))
    torch.testing.assert_close(second["scores"], torch.tensor([20.0, 20]))  # red and green; blue is behind the count
    assert second["labels"].tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"a.onnx: has no output 'true_map', which the metric of the config needs"):
        found[0]["true_map"]


def test_config_is_that_of_the_export(program, tmp_path):
    assert config_of(OnnxProgram(program)) == "visionattn::atss_dinat-pico_fpn_digits"
    other = save_program(
        tmp_path / "b.onnx", [(("Identity", ["image"], ["same"]), {})], {}, {"same": (1, ["b", 3, "h", "w"])},
        config="mine.py",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"b.onnx: its config 'mine' is not one of the package; give the config"):
        config_of(OnnxProgram(other))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--onnx", "gone.onnx"], "gone.onnx: no such file"),
        (["--onnx", "a.pt2"], "--onnx must be a file that ends in .onnx"),
        (["--model", "digits", "--onnx", "a.onnx", "--weights", "w.pth"], "--weights does not apply to --onnx"),
        (["c.py", "--model", "digits", "--onnx", "a.onnx"], "exactly one of CONFIG and --model"),
        (["c.py", "--provider", "cpu"], "--provider applies to --onnx only"),
    ],
)
def test_wrong_arguments(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["test", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
