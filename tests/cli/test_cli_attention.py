"""The command that draws attention."""

import csv
import re
from collections import Counter

import cv2
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from visionattn.cli import main


def test_rules_of_the_command_are_those_of_the_function():
    from visionattn.cli import attention
    from visionattn.inference.explain import relevance

    assert attention.RULES == relevance.RULES


def test_page(tmp_path, capsys):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (60, 90, 3)).astype(np.uint8))
    arguments = ["attention", str(tmp_path / "a.png"), "--model", "dinat_pico", "--random", "--size", "64"]
    assert main([*arguments, "--query", "10", "50", "--layers", "0", "11", "--out", str(tmp_path / "out")]) == 0
    assert "12 attention layers" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "Query at (10, 50)" in page
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        "distance.png", "query0_00.png", "query0_11.png",
    ]  # fmt: skip
    for extra, message in (
        (["--query", "90", "5"], "--query must be inside the image of 90x60 pixels"),
        (["--layers", "12"], "--layers must be in [0, 11]"),
        (["--size", "8"], "--size must be at least 32"),
    ):
        assert main([*arguments, *extra]) == 1
        assert message in capsys.readouterr().err
    assert main(["attention", str(tmp_path / "a.png"), "--model", "nothing"]) == 1
    assert "--model 'nothing' is not a timm model" in capsys.readouterr().err


def test_class_activation_map_of_a_trained_classifier_only(tmp_path):
    import timm
    import torch

    import visionattn  # noqa: F401  registers dinat_pico

    torch.manual_seed(0)
    torch.save(timm.create_model("dinat_pico", num_classes=1000).state_dict(), tmp_path / "weights.pth")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    arguments = ["attention", str(tmp_path / "a.png"), "--model", "dinat_pico", "--size", "64", "--layers", "0"]
    arguments += ["--out", str(tmp_path / "out")]
    assert main([*arguments, "--random"]) == 0
    assert "Class activation map" not in (tmp_path / "out" / "index.html").read_text()
    assert main([*arguments, "--checkpoint", str(tmp_path / "weights.pth")]) == 0
    assert "Class activation map" in (tmp_path / "out" / "index.html").read_text()


def test_backbone_of_a_run(segmentor_run, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 90, 3), np.uint8))
    arguments = ["attention", str(tmp_path / "a.png"), "--run", str(segmentor_run), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--layers", "0"]) == 0
    assert "attention layers" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert "backbone." in page
    assert "Class activation map" not in page
    assert main([*arguments, "--model", "dinat_pico"]) == 1
    assert "exactly one of --model, --run and --config is required" in capsys.readouterr().err
    assert main([*arguments, "--relevance"]) == 1
    assert "--relevance needs a classifier" in capsys.readouterr().err
    assert main([*arguments, "--label", "3"]) == 1
    assert "--label requires --relevance" in capsys.readouterr().err


def outside(page: str) -> list[str]:
    """Addresses that a page refers to, other than its own content."""
    found = re.findall(r"""(?:src|href|srcset|action)=["']([^"']*)|url\(([^)]*)\)|@import\s+(\S+)""", page)
    return [address for match in found for address in match if address and not address.startswith(("data:", "#"))]


@pytest.mark.parametrize("name", ["resnet10t", "dinat_pico"])
def test_relevance_beside_the_class_activation_map(name, tmp_path, capsys):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (60, 90, 3)).astype(np.uint8))
    arguments = ["attention", str(tmp_path / "a.png"), "--model", name, "--random", "--size", "64"]
    arguments += ["--out", str(tmp_path / "out"), *(["--layers", "0"] if name == "dinat_pico" else [])]
    assert main([*arguments, "--relevance", "z", "--label", "7"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert outside(page) == []
    assert "<script" not in page
    assert "Class 7, logit" in page
    assert 99 < float(re.search(r"together ([\d.]+)% of the logit", page)[1]) < 101
    written = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert {"relevance.png", "salient.png", "layercam.png"} <= written
    assert ("distance.png" in written) == (name == "dinat_pico")
    for file in ("relevance.png", "salient.png", "layercam.png"):
        assert cv2.imread(str(tmp_path / "out" / file)).shape == (60, 90, 3)
    assert "does not suit this network" not in page
    if name == "dinat_pico":  # z+ is meant for networks with ReLU
        assert main([*arguments, "--relevance", "z+"]) == 0
        assert "does not suit this network" in (tmp_path / "out" / "index.html").read_text()
    capsys.readouterr()
    assert main([*arguments, "--relevance", "--label", "1000"]) == 1
    assert "--label must be in [0, 999]" in capsys.readouterr().err
    if name == "resnet10t":
        assert main(arguments) == 1
        assert "resnet10t has no attention over a feature map" in capsys.readouterr().err


def test_heads_of_a_folder(tmp_path, capsys):
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("dinat_pico", num_classes=2)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    rng = np.random.default_rng(0)
    for name in ("cat/a", "dog/b", "dog/c"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.png"), rng.integers(0, 256, (40, 70, 3)).astype(np.uint8))
    out, arguments = tmp_path / "out", ["attention", str(tmp_path / "photos"), "--model", "dinat_pico", "--heads"]
    arguments += ["--weights", str(tmp_path / "weights.pth"), "--size", "32", "--patterns", "3", "--out", str(out)]
    assert main([*arguments, "--classes", "dog", "cat"]) == 0
    assert "in 12 attention layers, 3 images" in capsys.readouterr().out
    page = (out / "index.html").read_text()
    assert outside(page) == []
    assert all(title in page for title in ("Important heads", "Attention over distance", "Attention patterns"))
    tables = {file.stem: list(csv.DictReader(file.open())) for file in out.glob("*.csv")}
    heads = tables["heads"]
    assert {(row["class"], row["images"]) for row in heads} == {("all", "3"), ("dog", "2"), ("cat", "1")}
    one, two, both = (
        [float(row["probability"]) for row in heads if row["class"] == name] for name in ("cat", "dog", "all")
    )
    np.testing.assert_allclose((np.array(one) + 2 * np.array(two)) / 3, both, rtol=1e-3, atol=1e-7)
    assert any(both)
    for name in ("rings", "offsets"):
        total = Counter()
        for row in tables[name]:
            total[row["layer"], row["head"]] += float(row["share"])
        assert len(total) == len(both) / 2
        np.testing.assert_allclose(list(total.values()), 1, atol=1e-3)
    assert len(tables["patterns"]) == 3 * len(total)
    assert {row["pattern"] for row in tables["patterns"]} <= {"0", "1", "2"}
    for extra, message in (
        (["--classes", "dog"], "--classes must have 2 names"),
        (["--classes", "dog", "cow"], "must be the name of its class, got 'cat'"),
        (["--patterns", "0"], "--patterns must be at least 1"),
    ):
        assert main([*arguments, *extra]) == 1
        assert message in capsys.readouterr().err
    assert main(["attention", str(tmp_path / "photos"), "--model", "dinat_pico", "--random"]) == 1
    assert "is a folder, which requires --heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "--relevance"], "--relevance has no effect with --heads"),
        (["--heads", "--query", "1", "2"], "--query has no effect with --heads"),
        (["--heads", "--prune"], "--prune has no effect with --heads"),
        (["--label", "3"], "--label requires --relevance"),
    ],
)
def test_options_without_effect(options, message, tmp_path, capsys):
    assert main(["attention", str(tmp_path), "--model", "resnet10t", "--random", *options]) == 1
    assert message in capsys.readouterr().err
