import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from visionattn.heads.action.metrics import class_recalls, combine_views, mean_class_accuracy, top_accuracy


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 200)
    scores = rng.normal(size=(200, 7)) + 1.5 * np.eye(7)[labels] * (labels % 3 == 0)[:, None]
    assert mean_class_accuracy(scores, labels) == pytest.approx(100 * balanced_accuracy_score(labels, scores.argmax(1)))
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k)
        assert top_accuracy(scores, labels, k) == pytest.approx(100 * expected)


def test_classes_without_videos_do_not_count():
    scores, labels = np.eye(4)[[0, 0, 2, 3]], np.array([0, 0, 2, 2])
    np.testing.assert_array_equal(class_recalls(scores, labels), [100, np.nan, 50, np.nan])
    assert mean_class_accuracy(scores, labels) == 75
    assert top_accuracy(scores, labels) == 75


def test_views():
    scores = np.array([[0.2, 0.8], [0.6, 0.4]])
    assert combine_views(scores).tolist() == pytest.approx([0.4, 0.6])
    assert combine_views(scores, "max").tolist() == [0.6, 0.8]
    with pytest.raises(ValueError, match="`reduction` must be 'mean' or 'max', got 'sum'"):
        combine_views(scores, "sum")
