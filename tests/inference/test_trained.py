"""What tiles and views do to the results of trained models; one without training has no objects to lose."""

import numpy as np
import pytest

from visionattn.heads.detection.merging import flip_prediction
from visionattn.inference import Predictor


@pytest.fixture(scope="module")
def detector(mask_rcnn_run):
    return Predictor.from_run(mask_rcnn_run, "cpu", score_thr=0.4)


@pytest.fixture(scope="module")
def segmentor(segmentor_run):
    return Predictor.from_run(segmentor_run, "cpu")


@pytest.fixture(scope="module")
def picture(scene):
    """A picture of 19 times the area that the models were trained on, its objects, and its map."""
    image, objects = scene(416, 416, seed=1000)
    semantic = np.full(image.shape[:2], 2)
    for label, mask in objects:
        semantic[mask] = label
    return image, objects, semantic


def again(predictor, **options):
    return Predictor.from_model(predictor.model, **{"score_thr": predictor.options.score_thr, **options})


def overlaps(one, other):
    """IoU of each box with each of the other prediction, 0 between classes."""
    low = np.maximum(one.boxes[:, None, :2], other.boxes[None, :, :2])
    common = (np.minimum(one.boxes[:, None, 2:], other.boxes[None, :, 2:]) - low).clip(min=0).prod(2)
    areas = [(p.boxes[:, 2:] - p.boxes[:, :2]).prod(1) for p in (one, other)]
    return common / (areas[0][:, None] + areas[1] - common) * (one.labels[:, None] == other.labels)


def share_found(one, other, least=30):
    """Of the objects that one prediction is sure of, the share that the other has too."""
    sure = one.scores >= 0.7
    assert sure.sum() >= least
    return (overlaps(one, other)[sure].max(axis=1) >= 0.7).mean()


def assert_equal(one, other):
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert (np.asarray(one.masks) != np.asarray(other.masks)).mean() < 1e-5


def test_objects_in_tiles_are_those_of_the_whole(detector, picture):
    image, objects, _ = picture
    whole, tiled = detector(image), again(detector, tile=256, overlap=96)(image)
    assert len(whole) >= 0.9 * len(objects)
    assert share_found(whole, tiled) >= 0.95
    assert share_found(tiled, whole) >= 0.95
    assert (np.asarray(whole.masks).any(0) != np.asarray(tiled.masks).any(0)).mean() < 0.01


def test_map_in_tiles_is_that_of_the_whole(segmentor, picture):
    image, _, semantic = picture
    whole, tiled = segmentor(image).semantic, again(segmentor, tile=256, overlap=128)(image).semantic
    assert (whole == semantic).mean() > 0.85
    assert (whole != tiled).mean() < 0.01


@pytest.mark.parametrize("options", [{"tta": True}, {"tta": True, "scales": (0.75, 1, 1.25)}])
def test_mirrored_views_of_the_mirrored_picture_give_the_mirrored_result(detector, segmentor, picture, options):
    image = picture[0][:200, :232]  # not of a size that needs no padding
    mirrored = np.ascontiguousarray(image[:, ::-1])
    assert_equal(again(detector, **options)(image), flip_prediction(again(detector, **options)(mirrored)))
    maps = [again(segmentor, **options)(i).semantic for i in (image, mirrored)]
    assert (maps[0] == maps[1][:, ::-1]).mean() > 0.9999  # sums in another order
    plain = [segmentor(i).semantic for i in (image, mirrored)]
    assert (plain[0] != plain[1][:, ::-1]).mean() > 0.0005  # which the models do not do by themselves


def test_one_view_of_scale_one_is_the_plain_result(detector, segmentor, picture):
    image = picture[0][:200, :232]
    plain = detector(image)
    assert len(plain) >= 10
    assert_equal(plain, again(detector, scales=(1.0,), tta=False)(image))
    assert_equal(plain, again(detector, tile=512)(image))  # an image within one tile is not cut
    view = again(segmentor, tile=512)(image).semantic  # by way of blended probabilities
    np.testing.assert_array_equal(segmentor(image).semantic, view)


def test_scales_are_seen_at_their_size_and_given_in_pixels_of_the_picture(detector, picture):
    image = picture[0][:208, :240]
    small = image[::2, ::2]
    twice = again(detector, scales=(2.0,))(np.ascontiguousarray(small))
    plain = detector(np.ascontiguousarray(small.repeat(2, 0).repeat(2, 1)))
    assert twice.image_size == (104, 120)
    twice.boxes[:] *= 2
    assert share_found(plain, twice, 15) >= 0.8  # one enlarged by interpolation, one by repetition
    assert np.asarray(twice.masks).shape[1:] == (104, 120)


def test_a_list_of_mixed_sizes_is_one_by_one(detector, segmentor, picture):
    image = picture[0]
    images = [image[:96, :128], image[50:200, :130], image[100:196, :128], image[:64, :64]]
    for one, alone in zip(again(detector, batch_size=3)(images), map(detector, images), strict=True):
        assert_equal(one, alone)
        assert one.image_size == one.image.shape[:2]
    for one, alone in zip(again(segmentor, batch_size=3)(images), map(segmentor, images), strict=True):
        assert (one.semantic == alone.semantic).mean() > 0.9999
