"""Forgery measures against scikit-learn, recorded values of IMDLBenCo, and values by hand."""

import numpy as np
import pytest
import torch

from visionattn.heads.forgery.metrics import (
    MODES,
    PooledPixels,
    binary_auc,
    image_scores,
    pixel_scores,
    summarize,
)

sklearn = pytest.importorskip("sklearn.metrics")
RECORDED = {"f1": "PixelF1", "iou": "PixelIOU", "accuracy": "PixelAccuracy", "auc": "PixelAUC"}


@pytest.fixture(scope="module")
def recorded(shared_dir):
    return torch.load(shared_dir / "parity" / "forgery" / "imdl_metrics_a.pt", weights_only=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", ["", "_sm"])
def test_recorded_pixel_measures(recorded, mode, suffix):
    given, wanted = recorded["inputs"], recorded["outputs"]
    for i in range(len(given["pred"])):
        valid = given["shape_mask"][i].numpy() if suffix else None
        found = pixel_scores(given["pred"][i].numpy(), given["mask"][i].numpy(), valid, mode=mode, auc="benco")
        for name, key in RECORDED.items():
            # image 3 has many equal scores, whose order upstream is that of an unstable sort
            tolerance = 2e-3 if (name, i) == ("auc", 3) else 1e-5
            want = float(wanted[f"{key}_{mode}{suffix}"][i])
            assert found[name] == pytest.approx(want, abs=tolerance, nan_ok=True), (name, i)


def test_recorded_image_measures(recorded):
    given, wanted = recorded["inputs"], recorded["outputs"]
    found = image_scores(given["pred_label"], given["label"])
    assert found["f1"] == pytest.approx(wanted["ImageF1"], abs=1e-6)
    assert found["auc"] == pytest.approx(wanted["ImageAUC"], abs=1e-9)
    assert found["accuracy"] == pytest.approx(wanted["ImageAccuracy"], abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_agreement_with_scikit_learn(ties, part):
    rng = np.random.default_rng(int(ties) + 2 * int(part))
    for _ in range(10):
        truth = rng.random((13, 17)) < 0.3
        score = np.clip(truth * 0.2 + rng.normal(0.4, 0.2, truth.shape), 0, 1)
        if ties:
            score = np.round(score * 4) / 4
        valid = rng.random(truth.shape) < 0.8 if part else np.ones_like(truth)
        found = pixel_scores(score, truth, valid if part else None)
        y, s = truth[valid], score[valid]
        assert found["auc"] == pytest.approx(sklearn.roc_auc_score(y, s), abs=1e-12)
        assert found["f1"] == pytest.approx(sklearn.f1_score(y, s > 0.5, zero_division=0), abs=1e-6)
        assert found["iou"] == pytest.approx(sklearn.jaccard_score(y, s > 0.5, zero_division=0), abs=1e-6)
        assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(y, s > 0.5))
        pool = PooledPixels()
        pool.add(score, truth, valid if part else None)
        pooled = pool.scores()
        assert pooled["f1"] == pytest.approx(found["f1"], abs=1e-9)
        assert pooled["auc"] == pytest.approx(found["auc"], abs=2e-3)


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    score, label, times = rng.random(50).round(1), rng.random(50) < 0.5, rng.integers(0, 4, 50)
    want = sklearn.roc_auc_score(np.repeat(label, times), np.repeat(score, times))
    assert binary_auc(score, label, times) == pytest.approx(want)
    assert binary_auc(score, label) == pytest.approx(sklearn.roc_auc_score(label, score))


def test_degenerate_masks():
    score = np.random.default_rng(0).random((4, 4))
    empty, full = np.zeros((4, 4)), np.ones((4, 4))
    assert np.isnan(pixel_scores(score, empty)["auc"])
    assert np.isnan(pixel_scores(score, full)["auc"])
    assert pixel_scores(score, empty, auc="benco")["auc"] == 0
    assert np.isnan(pixel_scores(score, full, auc="benco")["auc"])
    right = pixel_scores(empty, empty)
    assert (right["f1"], right["iou"], right["accuracy"]) == (0, 0, 1)


def test_a_value_at_the_threshold_is_not_forged_and_its_inverse_is():
    half, truth = np.full((2, 2), 0.5), np.ones((2, 2))
    assert pixel_scores(half, truth)["f1"] == 0
    inverted = pixel_scores(half, truth, mode="reverse")
    assert inverted["f1"] == pytest.approx(1)
    assert inverted["iou"] == 0
    assert pixel_scores(half, truth, mode="double")["f1"] == pytest.approx(1)


def test_conventions_of_a_mixed_set():
    def record(label, score, **pixel):
        return {"label": label, "score": score, "pixel": {"accuracy": 1.0, **pixel}}

    records = [record(1, 0.9, f1=0.8), record(1, 0.2, f1=0.4), record(0, 0.1, f1=0.0, accuracy=0.5)]
    published = summarize(records)
    assert published["pixel_f1"] == pytest.approx(0.6)
    assert published["authentic_accuracy"] == 0.5
    assert published["image_auc"] == 1
    assert published["image_accuracy"] == pytest.approx(2 / 3)
    assert summarize(records, include_authentic="benco")["pixel_f1"] == pytest.approx(0.4)
    assert "image_auc" not in summarize(records[:2])
    only = summarize(records[2:])
    assert "pixel_f1" not in only
    assert only["authentic_accuracy"] == 0.5
    assert summarize([]) == {}


def test_pooling_is_not_averaging():
    large, small = np.zeros((10, 10)), np.zeros((10, 10))
    large[:, :5], small[0, 0] = 1, 1
    pool, other = PooledPixels(), PooledPixels()
    pool.add(large, large)
    other.add(np.zeros((10, 10)), small)
    pool.merge(other)
    assert pool.scores()["f1"] == pytest.approx(2 * 50 / (2 * 50 + 1))
    assert all(np.isnan(v) for v in PooledPixels().scores().values())


def test_wrong_arguments():
    mask = np.zeros((4, 4))
    for arguments, match in (({"mode": "x"}, "`mode` must be"), ({"auc": "x"}, "`auc` must be")):
        with pytest.raises(ValueError, match=match):
            pixel_scores(mask, mask, **arguments)
    with pytest.raises(ValueError, match="same shape"):
        pixel_scores(mask, mask[:2])
    with pytest.raises(ValueError, match="got 0 and 0"):
        image_scores([], [])
