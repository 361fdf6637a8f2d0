"""Panoptic quality on cases counted by hand, and against its definition over sets of pixels."""

import pickle

import numpy as np
import pytest

from visionattn.data.panoptic import ClassCounts, PanopticStats, id2rgb, rgb2id

CATEGORIES = {1: {"isthing": 1}, 2: {"isthing": 1}, 7: {"isthing": 0}}


def line(*runs: tuple[int, int]) -> np.ndarray:
    """A map of one row: (id, pixels), one run after the other."""
    return np.concatenate([np.full(length, value) for value, length in runs])[None]


def segment(number: int, category: int, crowd: int = 0) -> dict:
    return {"id": number, "category_id": category, "iscrowd": crowd}


def count(truth, truth_segments, prediction, prediction_segments) -> PanopticStats:
    stats = PanopticStats()
    stats.add_image(truth, truth_segments, prediction, prediction_segments)
    return stats


def test_ids_and_colours_are_inverse():
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 5_000_000, (1 << 24) - 1]])
    colors = id2rgb(ids)
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors[0, 3], [0, 1, 0])
    np.testing.assert_array_equal(colors[1, 1], [0, 0, 1])
    np.testing.assert_array_equal(rgb2id(colors), ids)
    assert rgb2id([3, 2, 1]) == 3 + 2 * 256 + 65536
    assert id2rgb(66051) == [3, 2, 1]


@pytest.mark.parametrize("call", [lambda: rgb2id(np.zeros((4, 4))), lambda: id2rgb(1 << 24), lambda: id2rgb([-1])])
def test_what_is_no_id_or_colour(call):
    with pytest.raises(ValueError, match=r"color|ids"):
        call()


def test_a_match_counts_its_iou():
    stats = count(line((5, 8), (6, 2)), [segment(5, 1), segment(6, 7)],
                  line((9, 6), (8, 4)), [segment(9, 1), segment(8, 7)])  # fmt: skip
    assert stats[1] == ClassCounts(iou=6 / 8, tp=1)
    assert stats[7] == ClassCounts(fp=1, fn=1)  # 2 of 4 pixels: exactly one half does not match
    average, per_class = stats.pq_average(CATEGORIES, None)
    assert average == {"pq": 0.375, "sq": 0.375, "rq": 0.5, "n": 2}
    assert per_class[2] == {"pq": 0.0, "sq": 0.0, "rq": 0.0}  # does not occur, and is not in the mean
    assert stats.pq_average(CATEGORIES, True)[0] == {"pq": 0.75, "sq": 0.75, "rq": 1.0, "n": 1}
    assert stats.pq_average(CATEGORIES, False)[0] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1}


def test_another_class_does_not_match():
    stats = count(line((5, 8)), [segment(5, 1)], line((5, 8)), [segment(5, 2)])
    assert stats[1] == ClassCounts(fn=1)
    assert stats[2] == ClassCounts(fp=1)


def test_void_is_not_in_the_union():
    """Without void the IoU were 4 / 10; 5 of the prediction's 9 pixels lie where nothing is annotated."""
    stats = count(line((5, 5), (0, 5)), [segment(5, 1)], line((0, 1), (9, 9)), [segment(9, 1)])
    assert stats[1] == ClassCounts(iou=4 / 5, tp=1)


@pytest.mark.parametrize(("in_void", "false_positives"), [(5, 1), (6, 0)])
def test_prediction_mostly_in_void_is_ignored(in_void, false_positives):
    stats = count(line((5, 20 - in_void), (0, in_void)), [segment(5, 1)],
                  line((0, 10), (9, 10)), [segment(9, 2)])  # fmt: skip
    assert stats[2] == ClassCounts(fp=false_positives)


def test_crowd_is_neither_matched_nor_missed():
    truth, segments = line((5, 10)), [segment(5, 1, crowd=1)]
    assert count(truth, segments, line((0, 10)), []).pq_average(CATEGORIES, None)[0]["n"] == 0
    assert count(truth, segments, line((9, 10)), [segment(9, 1)])[1] == ClassCounts()
    assert count(truth, segments, line((9, 10)), [segment(9, 2)])[2] == ClassCounts(fp=1)


def test_crowds_and_void_add_up():
    truth = line((5, 2), (6, 2), (0, 2), (7, 4))
    segments = [segment(5, 1, crowd=1), segment(6, 1, crowd=1), segment(7, 2)]
    assert count(truth, segments, line((9, 10)), [segment(9, 1)])[1] == ClassCounts()


def test_sums_over_images_and_processes():
    one = count(line((5, 8)), [segment(5, 1)], line((5, 8)), [segment(5, 1)])
    two = count(line((5, 8)), [segment(5, 1)], line((5, 6), (0, 2)), [segment(5, 1)])
    total = PanopticStats()
    total += pickle.loads(pickle.dumps(one))
    total += two
    assert total[1] == ClassCounts(iou=1.75, tp=2)
    assert one[1].tp == 1


def test_nothing_at_all():
    assert PanopticStats().pq_average(CATEGORIES, None)[0] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}


def test_ids_that_are_not_in_the_map():
    with pytest.raises(ValueError, match="but differ in"):
        count(line((5, 8)), [segment(5, 1)], line((5, 8)), [segment(5, 1), segment(6, 1)])
    with pytest.raises(ValueError, match="but differ in"):
        count(line((5, 8)), [segment(5, 1)], line((5, 8)), [])
    with pytest.raises(ValueError, match="must have the same shape"):
        count(line((5, 8)), [segment(5, 1)], line((5, 9)), [segment(5, 1)])


def by_definition(images) -> dict[int, ClassCounts]:
    """Section 4 of the paper, segment by segment, on sets of pixels."""
    result = {category: ClassCounts() for category in CATEGORIES}
    for truth, truth_segments, prediction, prediction_segments in images:

        def pixels(where, number):
            return set(np.flatnonzero(where == number).tolist())

        void = pixels(truth, 0)
        for category, counts in result.items():
            true = [pixels(truth, s["id"]) for s in truth_segments
                    if s["category_id"] == category and not s["iscrowd"]]  # fmt: skip
            crowd = set().union(*(pixels(truth, s["id"]) for s in truth_segments
                                  if s["category_id"] == category and s["iscrowd"]))  # fmt: skip
            found = [pixels(prediction, s["id"]) for s in prediction_segments if s["category_id"] == category]
            pairs = {(i, j): len(t & f) / len(t | f - void) for i, t in enumerate(true) for j, f in enumerate(found)}
            matches = {pair: iou for pair, iou in pairs.items() if iou > 0.5}
            counts.tp += len(matches)
            counts.iou += sum(matches.values())
            counts.fn += len(true) - len({i for i, _ in matches})
            rest = [f for j, f in enumerate(found) if j not in {j for _, j in matches}]
            counts.fp += sum(len(f & (void | crowd)) <= len(f) / 2 for f in rest)
    return result


def random_image(rng: np.random.Generator) -> tuple:
    """Blocks of ids; the prediction is the truth with some pixels, ids and classes changed."""
    shape = tuple(rng.integers(6, 14, 2))
    truth = np.kron(rng.integers(0, 7, (3, 3)), np.ones((5, 5), int))[: shape[0], : shape[1]]
    prediction = np.where(rng.random(truth.shape) < rng.choice([0.1, 0.3, 0.6]), rng.integers(0, 7, truth.shape), truth)
    classes = rng.choice(list(CATEGORIES), 7)
    guesses = np.where(rng.random(7) < 0.7, classes, rng.choice(list(CATEGORIES), 7))
    true_segments = [segment(int(i), int(classes[i]), int(rng.random() < 0.3)) for i in np.unique(truth) if i]
    found_segments = [segment(int(i), int(guesses[i])) for i in np.unique(prediction) if i]
    return truth, true_segments, prediction, found_segments


@pytest.mark.parametrize("seed", range(20))
def test_random_images_against_the_definition(seed):
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(10)]
    stats = PanopticStats()
    for image in images:
        stats.add_image(*image)
    expected = by_definition(images)
    assert sum(c.tp for c in expected.values()) > 5
    for category, counts in expected.items():
        got = stats[category]
        assert (got.tp, got.fp, got.fn) == (counts.tp, counts.fp, counts.fn)
        assert got.iou == pytest.approx(counts.iou)
