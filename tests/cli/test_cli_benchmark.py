"""``visionattn benchmark`` as a person uses it."""

import json
from dataclasses import replace

import pytest
import torch

from visionattn import cli
from visionattn.cli import main
from visionattn.cli.benchmark import measure, operators
from visionattn.kernels import na2d
from visionattn.kernels.neighborhood.triton.image_tiles import image_tiles
from visionattn.kernels.neighborhood.triton.tiles import Geometry, legal_tiles

PROBLEM = ["na2d", "--shape", "12", "14", "--kernel-size", "5", "--dim", "8"]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables by their first cell."""
    found = ([cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line)
    return {row[0]: row[1:] for row in found}


def fails(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert main(["benchmark", *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "unexpected" not in error
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize("options", [[], ["--backward", "--rpb", "--dilation", "2", "--heads-kv", "1"]])
def test_times_each_backend_and_says_why_not(options, capsys):
    argv = ["benchmark", *PROBLEM, *options, "--rounds", "2", "--device", "cpu", "--backends", "torch", "reference"]
    assert main(argv) == 0
    table = rows(capsys.readouterr().out)
    assert {"torch", "reference"} <= set(table)
    assert all(float(table[name][0]) > 0 and float(table[name][3]) < 1e-4 for name in ("torch", "reference"))
    assert main(["benchmark", *PROBLEM, "--rounds", "2", "--device", "cpu"]) == 0
    assert "triton: cannot run: " in capsys.readouterr().out


def test_a_wrong_backend_is_not_timed(capsys, monkeypatch):
    def wrong(**kwargs):
        out = na2d(**kwargs)
        return out + 1 if kwargs["backend"] == "torch" else out

    monkeypatch.setitem(operators.OPERATORS, "na2d", wrong)
    assert "differs from 'reference'" in fails(capsys, *PROBLEM, "--device", "cpu", "--backends", "torch")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dry_run_lists_the_tiles_and_marks_the_default(dtype, capsys, monkeypatch):
    monkeypatch.setattr(operators, "_time", None)
    argv = ["benchmark", "na2d", "--shape", "56", "56", "--kernel-size", "7", "--dtype", dtype, "--dry-run"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    geometry = Geometry.of((56, 56), (7, 7), (1, 1), (1, 1), (False, False))
    loops = dtype == "bf16"
    tiles = image_tiles(geometry, "forward", 32, 32, False) if loops else legal_tiles(geometry, "forward", 32, 32, 4)
    table = [line for line in text[: text.index("backward")].splitlines() if "│" in line]
    assert len(table) == len(tiles)
    assert ("programs loop over images" in text) == loops
    first = [cell.strip() for cell in table[0].strip("│").split("│")]
    rows, columns = tiles[0].shape[:2]
    halo = f"{rows + 6}x{16 if loops else columns + 6}"  # rows of a power of two
    assert first[:3] == [f"{rows}x{columns}", str(rows * columns), halo]
    assert first[-1] == "default"
    assert text.count("default") == 3  # forward, and two of backward


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["na2d", "--shape", "12", "--kernel-size", "3"], ["--shape must have one value per axis (2 for na2d), got 1"]),
        (["na2d", "--shape", "12", "12", "--kernel-size", "13"], ["got kernel_size=(13, 13)"]),
        ([*PROBLEM, "--dtype", "fp64", "--dry-run"], ["fp64"]),
        ([*PROBLEM, "--rounds", "1"], ["--rounds must be at least 2, got 1"]),
        ([*PROBLEM, "--device", "cpu", "--backends", "nonsense"], ["nonsense"]),
        ([*PROBLEM, "--heads", "3", "--heads-kv", "2"], ["divide the 3 heads of `query`, got 2"]),
        (["na2d", "--shape", "12", "12"], ["na2d requires --kernel-size"]),
        ([], ["exactly one of an operator (na1d, na2d, na3d) and --model"]),
        ([*PROBLEM, "--model", "dinat_pico"], ["exactly one of"]),
        (["--model", "dinat_picos"], ["no such --model", "dinat_pico"]),
        (["--model", "dinat_pico", "--size", "8"], ["--size must be at least 32, got 8"]),
        (["--model", "dinat_pico", "--modes", "graph", "--device", "cpu"], ["CUDA graphs need a CUDA --device"]),
        (["--model", "dinat_pico", "--shape", "8", "8"], ["--shape is an option of operators"]),
        (["na2d", "--shape", "8", "8", "--size", "64"], ["--size is an option of models"]),
        (["--model", "dinat_pico", "--csv", "/nowhere/times.csv"], ["the folder does not exist"]),
    ],
)
def test_bad_arguments(argv, words, capsys):
    error = fails(capsys, *argv)
    assert all(word in error for word in words), error


def test_models_in_turn(capsys, tmp_path):
    argv = ["benchmark", "--model", "dinat_pico", "test_resnet", "--batch", "2", "--size", "64", "--rounds", "2",
            "--train", "--device", "cpu", "--json", "--csv", str(tmp_path / "rows.csv")]  # fmt: skip
    assert main(argv) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["pass"]) for row in rows] == [
        ("dinat_pico", "inference"), ("test_resnet", "inference"),
        ("dinat_pico", "training step"), ("test_resnet", "training step"),
    ]  # fmt: skip
    for row in rows:
        assert row["images_per_s"] == pytest.approx(2e3 / row["median_ms"], rel=0.01)
        assert row["peak_mib"] > 0.1
    assert rows[0]["times_first"] == 1
    assert rows[1]["times_first"] == pytest.approx(rows[1]["images_per_s"] / rows[0]["images_per_s"], rel=0.01)
    assert rows[2]["peak_mib"] > rows[0]["peak_mib"]  # activations are kept for the backward pass
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[0].startswith("model,pass,mode,batch")
    assert len(lines) == 5


def test_compiled_and_half_precision(capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(options) or model)
    argv = ["benchmark", "--model", "dinat_pico", "--size", "64", "--rounds", "2", "--device", "cpu", "--train"]
    assert main([*argv, "--dtype", "bf16", "--modes", "eager", "compile"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "dinat_pico" in line]
    assert ["eager" in line for line in lines] == [True, False, True, False]
    assert compiled == [{"dynamic": False}] * 2


def test_steps_do_what_they_say():
    setup = measure.Setup("dinat_pico", size=64, batch=2)
    assert measure.make_step(setup)().shape == (2, 1000)
    step = measure.make_step(replace(setup, train=True))
    losses = [float(step()) for _ in range(8)]
    assert losses[-1] < losses[0]  # the weights are updated
    assert measure.make_step(replace(setup, dtype=torch.bfloat16))().dtype == torch.bfloat16
    assert measure.make_step(measure.Setup("test_vit", size=64))().shape == (1, 1000)  # made for 160 pixels
    assert measure.Setup("dinat_pico").input_shape == (1, 3, 224, 224)


def test_peak_memory():
    def step():
        return torch.zeros(1 << 20).sum() + torch.zeros(2 << 20).sum()

    assert 8 <= measure.peak_memory(step, torch.device("cpu")) <= 13


def test_the_door_names_the_command():
    assert "benchmark" in cli.COMMANDS


def test_whole_prediction(capsys):
    pytest.importorskip("mmdet")
    argv = ["benchmark", "--model", "nuclei", "--size", "64", "--rounds", "2", "--device", "cpu", "--train"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert rows(text)["nuclei"][0] == "predict"
    assert "training step" not in text
