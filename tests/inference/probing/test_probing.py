"""Probes on features that separate the classes or do not, cached features, and the command."""

import csv
import json

import cv2
import numpy as np
import pytest
import timm
import torch

from visionattn.cli import main
from visionattn.errors import DataError
from visionattn.inference.probing.features import extract_features, fingerprint
from visionattn.inference.probing.images import read_splits
from visionattn.inference.probing.probes import (
    RATES,
    Protocol,
    _best_rate,
    efficient_probe,
    linear_probe,
    neighbor_scores,
    probe_scores,
    train_probe,
)

COLORS = {"blue": (200, 60, 60), "green": (60, 200, 60), "red": (60, 60, 200)}


def write(folder, name, color, number):
    generator = np.random.default_rng(number)
    image = np.full((40, 48, 3), color, np.uint8) + generator.integers(0, 40, (40, 48, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.png"), image)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    root = tmp_path_factory.mktemp("colors")
    for split, count in (("train", 6), ("val", 4)):
        for label, (name, color) in enumerate(COLORS.items()):
            for number in range(count):
                write(root / split / name, f"image{number}", color, 100 * label + number)
    return root


def test_splits(colors, tmp_path):
    train, test = read_splits(colors)
    assert train.classes == ("blue", "green", "red")
    assert np.bincount(train.labels).tolist() == [6, 6, 6]
    assert np.bincount(test.labels).tolist() == [4, 4, 4]
    train, test = read_splits(colors / "train")  # without splits
    assert np.bincount(train.labels).tolist() == [4, 4, 4]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert not set(train.files) & set(test.files)
    assert read_splits(colors / "train")[1].files == test.files
    assert read_splits(colors / "train", 1)[1].files != test.files
    with pytest.raises(DataError, match="no such folder"):
        read_splits(tmp_path / "none")
    with pytest.raises(DataError, match="at least 2 classes, got 0"):
        read_splits(tmp_path)
    write(tmp_path / "train/a", "1", (0, 0, 0), 0)
    write(tmp_path / "train/b", "1", (0, 0, 0), 0)
    with pytest.raises(DataError, match="must contain at least 2 images"):
        read_splits(tmp_path / "train")
    with pytest.raises(DataError, match="has `train`, but no folder of test images"):
        read_splits(tmp_path)
    write(tmp_path / "test/a", "1", (0, 0, 0), 0)
    write(tmp_path / "test/c", "1", (0, 0, 0), 0)
    with pytest.raises(DataError, match="the class 'c' is not in"):
        read_splits(tmp_path)
    (tmp_path / "train/c").mkdir()
    with pytest.raises(DataError, match="train/c: contains no images"):
        read_splits(tmp_path)


def clusters(count, tokens=None, seed=0):
    """Features of two views with one direction for each of three classes, in one of the tokens."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    shape = (count, 2, 12) if tokens is None else (count, 2, tokens, 12)
    features = generator.normal(0, 1, shape)
    if tokens is None:
        features[np.arange(count), :, labels] += 4
    else:
        for row, label in enumerate(labels):
            features[row, :, generator.integers(tokens), label] += 7
    return features.astype(np.float16), labels


def accuracy(scores, labels):
    return (scores.argmax(1).numpy() == labels).mean()


def test_linear_probe_and_neighbors():
    (train, labels), (test, truth) = clusters(90), clusters(60, seed=1)
    probe = train_probe(lambda: linear_probe(12, 3), train, labels, Protocol(base_lr=10, min_steps=200))
    assert not probe.training
    assert accuracy(probe_scores(probe, test[:, 0]), truth) > 0.9
    assert accuracy(neighbor_scores(train[:, 0], labels, test[:, 0]), truth) > 0.9
    again = train_probe(lambda: linear_probe(12, 3), train, labels, Protocol(base_lr=10, min_steps=200))
    assert torch.equal(again[1].weight, probe[1].weight)


def test_efficient_probing_finds_the_token():
    (train, labels), (test, truth) = clusters(240, tokens=25), clusters(150, tokens=25, seed=1)
    protocol = Protocol(base_lr=10, min_steps=300)
    probe = train_probe(lambda: efficient_probe(12, 3, queries=5), train, labels, protocol)
    assert probe[0].num_queries == 4  # the largest divisor of 12 up to 5
    found = accuracy(probe_scores(probe, test[:, 0]), truth)
    mean = train_probe(lambda: linear_probe(12, 3), train.mean(2), labels, protocol)
    assert found > 0.9
    assert found > accuracy(probe_scores(mean, test[:, 0].mean(1)), truth)


def test_learning_rate_is_chosen():
    train, labels = clusters(90)
    short = Protocol(epochs=5, warmup_epochs=1, min_steps=10)
    assert _best_rate(lambda: linear_probe(12, 3), train, labels, short) > RATES[0]


def test_votes_of_neighbors_by_hand():
    train = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    scores = neighbor_scores(train, [0, 1, 1], np.array([[2, 0]], np.float32), k=2, temperature=0.5)
    expected = [np.exp(2.0), np.exp(2 / 2**0.5)]
    torch.testing.assert_close(scores, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize(("name", "options"), [("resnet10t", {}), ("dinat_pico", {}), ("vit_tiny_patch16_224", {})])
def test_features(colors, tmp_path, name, options):
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    if hasattr(model, "set_input_size"):
        model.set_input_size((64, 64))
    files = read_splits(colors)[0].files[:3]
    counts = []
    found = extract_features(model, files, tmp_path / "a", views=3, size=64, batch_size=6, progress=counts.append)
    assert counts == [2, 1]
    assert found.pooled.shape == (3, 3, model.num_features)
    assert found.tokens.shape == (3, 3, found.grid[0] * found.grid[1], model.num_features)
    one = extract_features(model, files, tmp_path / "b", size=64)
    np.testing.assert_allclose(found.pooled[:, :1], one.pooled, rtol=0.02, atol=0.02)
    assert np.abs(found.pooled[:, 1] - found.pooled[:, 0]).max() > 0
    again = extract_features(model, files, tmp_path / "a", 3, 64, 6)
    np.testing.assert_array_equal(again.tokens, found.tokens)


def test_features_of_other_weights_or_images_are_computed_again(colors, tmp_path):
    model = timm.create_model("resnet10t").eval()
    files = list(read_splits(colors)[0].files[:2])
    first = extract_features(model, files, tmp_path, size=64).pooled.copy()
    digest = fingerprint(model)
    model.conv1[0].weight.data *= 2
    assert fingerprint(model) != digest
    second = extract_features(model, files, tmp_path, size=64).pooled.copy()
    assert np.abs(first - second).max() > 1e-3
    third = extract_features(model, files[::-1], tmp_path, size=64).pooled
    np.testing.assert_allclose(third[::-1], second, rtol=0.01, atol=0.01)


def test_command(colors, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["probe", str(colors), "--random", "--size", "32", "--epochs", "2", "--lr", "1", "--out", str(out)]
    assert main([*arguments, "--model", "resnet10t", "dinat_pico"]) == 0, capsys.readouterr().err
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [(row["model"], row["method"]) for row in rows] == [
        (model, method) for model in ("resnet10t", "dinat_pico") for method in ("knn", "linear", "efficient")
    ]
    assert float(rows[0]["top1"]) > 60  # colors are told apart by random features, too
    about = json.loads((out / "results.json").read_text())
    assert about["most_frequent_class"] == pytest.approx(33.33)
    assert about["protocol"]["base_lr"] == 1
    assert (out / "accuracy.png").is_file()
    assert (out / "attention_dinat_pico.png").is_file()
    assert "18 training and 12 test images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--size", "0"], "--size must be at least 1, got 0"),
        (["--device", "gpu0"], "--device 'gpu0' is not available"),
        (["--out", "/dev/null/probe"], "error: /dev/null/probe: Not a directory"),
        (["--lr", "-1"], "--lr must be positive, got -1.0"),
        (["--methods", "svm"], "--methods must be some of knn, linear, efficient, got 'svm'"),
        (["--weights", "a.pth"], "--weights applies to one --model without --random"),
    ],
)
def test_wrong_options(colors, tmp_path, capsys, options, message):
    given = ["probe", str(colors), "--model", "resnet10t", "--random", "--size", "32", "--out", str(tmp_path)]
    assert main([*given, *options]) == 1
    assert message in capsys.readouterr().err
