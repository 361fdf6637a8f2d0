import dataclasses
import inspect
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.errors import CheckpointError, ConfigError, DataError
from visionattn.inference import Predictor
from visionattn.inference.predictor import Options, pick_device
from visionattn.inference.tile_size import best_tile, known_size, suits_whole
from visionattn.zoo import find_model, model_names


def as_set(prediction) -> set[tuple]:
    return {(name, *map(int, box)) for name, box in zip(prediction.names, prediction.boxes, strict=True)}


@pytest.fixture
def scene(painted):
    """Rectangles of 30 to 60 pixels all over a large picture."""
    rng = np.random.default_rng(1)
    rectangles = []
    for row in range(8):
        for column in range(12):
            w, h = rng.integers(30, 60, 2)
            x, y = column * 70 + rng.integers(0, 69 - w), row * 70 + rng.integers(0, 69 - h)
            rectangles.append((str(rng.choice(["red", "blue"])), int(x), int(y), int(x + w), int(y + h)))
    return painted(560, 840, *rectangles), set(rectangles)


def test_array_path_and_pil_give_the_same(rectangle_model, painted, save_picture, tmp_path):
    predictor = Predictor.from_model(rectangle_model)
    image = painted(40, 60, ("red", 5, 6, 25, 30), ("blue", 40, 8, 60, 20))
    expected = {("red", 5, 6, 25, 30), ("blue", 40, 8, 60, 20)}
    path = save_picture(tmp_path / "x.png", image)
    for item in (image, str(path), path, Image.open(path)):
        prediction = predictor(item)
        assert as_set(prediction) == expected
        assert prediction.image_size == (40, 60)
        assert prediction.scores.tolist() == sorted(prediction.scores.tolist(), reverse=True)
        assert prediction.seconds > 0
        assert prediction.draw().shape == (40, 60, 3)
    assert predictor(path).path == path
    assert predictor(path).image is None


def test_list_in_list_out_in_order(rectangle_model, painted):
    predictor = Predictor.from_model(rectangle_model, batch_size=3)
    images = [painted(30 + 10 * (i % 2), 50, ("red", i, i, i + 10, i + 12)) for i in range(7)]
    results = predictor(images)
    assert [as_set(r) for r in results] == [{("red", i, i, i + 10, i + 12)} for i in range(7)]
    assert predictor([]) == []
    assert len(predictor(tuple(images[:1]))) == 1


def test_only_pictures_of_one_size_share_a_batch(rectangle_model, painted):
    predictor = Predictor.from_model(rectangle_model, batch_size=4)
    predictor([painted(30, 50), painted(40, 50), painted(30, 50), painted(30, 50), painted(40, 50)])
    assert rectangle_model.batches == [[(30, 50, 3)] * 3, [(40, 50, 3)], [(40, 50, 3)]]


def test_stream_holds_one_batch(rectangle_model, painted):
    taken = []

    def source():
        for index in range(100):
            taken.append(index)
            yield painted(20, 20, ("red", 1, 1, 9, 9))

    stream = Predictor.from_model(rectangle_model, batch_size=4).stream(source())
    next(stream)
    assert len(taken) == 4


def test_gray_array(rectangle_model):
    for shape in ((20, 30), (20, 30, 1)):
        assert Predictor.from_model(rectangle_model)(np.zeros(shape, np.uint8)).image_size == (20, 30)


@pytest.mark.parametrize(
    "item", [np.zeros((20, 30, 3)), np.zeros((20, 30, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), 7, None]
)
def test_what_is_no_picture(rectangle_model, item):
    with pytest.raises((ValueError, TypeError), match="must"):
        Predictor.from_model(rectangle_model)(item)


def test_missing_file_and_large_file(rectangle_model, painted, save_picture, tmp_path):
    predictor = Predictor.from_model(rectangle_model, max_pixels=100)
    with pytest.raises(DataError, match="does not exist"):
        predictor("gone.png")
    with pytest.raises(DataError, match="megapixels"):
        predictor(save_picture(tmp_path / "x.png", painted(20, 30)))


def test_score_threshold(rectangle_model, painted):
    image = painted(300, 300, ("red", 0, 0, 200, 200), ("blue", 250, 250, 260, 260))  # scores 0.2 and 0.99
    assert len(Predictor.from_model(rectangle_model, score_thr=0.1)(image)) == 2
    assert as_set(Predictor.from_model(rectangle_model, score_thr=0.5)(image)) == {("blue", 250, 250, 260, 260)}


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize(("tile", "overlap"), [(200, 70), (333, 64), (560, 100)])
def test_tiles_find_what_the_whole_image_shows(make_model, scene, with_masks, tile, overlap):
    """Fragments outscore wholes in this model, so this fails wherever merging goes by score alone."""
    image, expected = scene
    model = make_model(with_masks=with_masks)
    prediction = Predictor.from_model(model, tile=tile, overlap=overlap, score_thr=0)(image)
    assert as_set(prediction) == expected
    assert len(prediction) == len(expected)
    assert max(h for batch in model.batches for h, _, _ in batch) == tile
    if with_masks:
        whole = Predictor.from_model(make_model(with_masks=True), score_thr=0)(image)
        np.testing.assert_array_equal(np.asarray(prediction.masks).any(0), np.asarray(whole.masks).any(0))


def test_small_images_are_not_tiled(rectangle_model, painted):
    Predictor.from_model(rectangle_model, tile=64)(painted(64, 40))
    assert rectangle_model.batches == [[(64, 40, 3)]]


@pytest.mark.parametrize("tile", [None, 200])
def test_tta_finds_each_object_once(make_model, scene, tile):
    image, expected = scene
    model = make_model(with_masks=True)
    prediction = Predictor.from_model(model, tile=tile, overlap=tile and 70, tta=True, score_thr=0)(image)
    assert as_set(prediction) == expected
    assert len(prediction) == len(expected)


def test_tta_brings_what_only_the_mirrored_view_shows(make_model, painted):
    class LeftHalf(type(make_model())):
        def predict(self, images):
            return super().predict(
                [np.where(np.arange(i.shape[1])[:, None] < 50, i, 128).astype(np.uint8) for i in images]
            )

    image = painted(60, 100, ("red", 5, 5, 25, 25), ("blue", 70, 8, 90, 30))
    assert len(Predictor.from_model(LeftHalf())(image)) == 1
    assert as_set(Predictor.from_model(LeftHalf(), tta=True)(image)) == {
        ("red", 5, 5, 25, 25),
        ("blue", 70, 8, 90, 30),
    }


def test_semantic_model(make_model, painted):
    model = make_model(job="semantic")
    prediction = Predictor.from_model(model)(painted(20, 30, ("red", 5, 5, 15, 15)))
    assert len(prediction) == 0
    assert (prediction.semantic == 0).sum() == 100


def test_panoptic_segments_cannot_be_merged(make_model):
    for options in ({"tta": True}, {"scales": (1, 2)}):
        with pytest.raises(ConfigError, match="not supported for panoptic models"):
            Predictor.from_model(make_model(job="panoptic"), **options)


@pytest.mark.parametrize(("tile", "overlap"), [(200, 70), (333, 64), (128, 32), (100, 8)])
@pytest.mark.parametrize("things", [0, 1, 2])
def test_tiled_panoptic_map_is_the_whole_one(make_model, scene, tile, overlap, things):
    """Rectangles wider than the overlap too; the parts of stuff, red or both, are one segment a class."""
    image, _ = scene

    class Panoptic(type(make_model())):
        def predict(self, images):
            results = super().predict(images)
            for result, picture in zip(results, images, strict=True):
                for label in range(things, 2):
                    mine = result["labels"] == label
                    if mine.any():
                        whole = result["masks"][mine].any(0)[None]
                        result["masks"] = np.concatenate([result["masks"][~mine], whole])
                        result["labels"] = np.append(result["labels"][~mine], label)
                count = len(result["labels"])
                result["scores"], result["boxes"] = np.ones(count, np.float32), np.zeros((count, 4), np.float32)
                red, blue = (
                    (picture == np.array((0, 0, 255))).all(axis=2),
                    (picture == np.array((255, 0, 0))).all(axis=2),
                )
                result["semantic"] = np.select([red, blue], [0, 1], 2)
            return results

    model = Panoptic(job="panoptic", num_things=things)
    whole = Predictor.from_model(model)(image)
    tiled = Predictor.from_model(model, tile=tile, overlap=overlap)(image)
    np.testing.assert_array_equal(tiled.semantic, whole.semantic)
    assert len(tiled) == len(whole)
    masks = {(label, mask.tobytes()) for label, mask in zip(whole.labels, whole.masks, strict=True)}
    assert {(label, mask.tobytes()) for label, mask in zip(tiled.labels, tiled.masks, strict=True)} == masks


@pytest.mark.parametrize(("tile", "overlap"), [(200, 70), (333, 64), (128, 32)])
@pytest.mark.parametrize("tta", [False, True])
def test_tiled_map_is_the_whole_one(make_model, scene, tile, overlap, tta):
    """The model sees 4 pixels around each: fewer than a quarter of the overlap, so there is no difference at all."""
    image, _ = scene
    model = make_model(job="semantic")
    expected = model.logits(image).argmax(0)
    assert 0.1 < (expected < 2).mean() < 0.9
    prediction = Predictor.from_model(model, tile=tile, overlap=overlap, tta=tta, batch_size=3)(image)
    assert max(h for batch in model.batches for h, _, _ in batch) == tile
    assert (prediction.semantic == expected).mean() > 0.9999  # rounding where two classes are as near
    assert prediction.seconds > 0


def test_views_of_a_map_are_averaged(make_model, painted):
    class LeftHalf(type(make_model())):
        def logits(self, image):
            values = super().logits(image)
            values[:, :, image.shape[1] // 2 :] = 0  # knows nothing of the right half
            return values

    image = painted(60, 100, ("red", 5, 5, 25, 25), ("blue", 70, 8, 90, 30))
    model = LeftHalf(job="semantic")
    assert (model.logits(image).argmax(0) == 1).sum() == 0
    assert Predictor.from_model(model, tta=True)(image).semantic[15, 80] == 1
    assert Predictor.from_model(model, tta=True)(image).semantic[15, 15] == 0


def test_scales_reach_the_model_and_are_merged(make_model, painted):
    class Scaled(type(make_model())):
        seen = ()

        def predict(self, images, scale=1.0):
            self.seen += (scale,)
            return super().predict([i if scale > 1 else np.full_like(i, 128) for i in images])

    image = painted(60, 100, ("red", 5, 5, 25, 25))
    model = Scaled(with_masks=True)
    prediction = Predictor.from_model(model, scales=(0.5, 1, 2), tta=True)(image)
    assert model.seen == (0.5, 0.5, 1.0, 1.0, 2.0, 2.0)
    assert as_set(prediction) == {("red", 5, 5, 25, 25)}
    assert len(prediction) == len(prediction.masks) == 1


def test_boxes_are_clipped_to_the_image(make_model, painted):
    class Outside(type(make_model())):
        def predict(self, images):
            results = super().predict(images)
            results[0]["boxes"] += np.array([-30, -30, 100, 100], np.float32)
            return results

    prediction = Predictor.from_model(Outside())(painted(40, 60, ("red", 5, 5, 15, 15)))
    np.testing.assert_array_equal(prediction.boxes, [[0, 0, 60, 40]])


def test_category_ids_of_the_config(make_model, painted):
    cfg = {"test_dataloader": {"dataset": {"metainfo": {"category_ids": [3, 17]}}}}
    prediction = Predictor.from_model(make_model(cfg=cfg))(painted(40, 60, ("blue", 5, 5, 15, 15)))
    assert prediction.to_coco(0)[0]["category_id"] == 17
    cfg["test_dataloader"]["dataset"]["metainfo"]["category_ids"] = [1]
    with pytest.raises(ConfigError, match="category_ids"):
        Predictor.from_model(make_model(cfg=cfg))


def test_failed_models_are_named(make_model, painted):
    class Failed(type(make_model())):
        def predict(self, images):
            results = super().predict(images)
            results[0]["scores"][:] = np.nan
            return results

    image = painted(40, 60, ("blue", 5, 5, 15, 15))
    with pytest.raises(CheckpointError, match="NaN"):
        Predictor.from_model(Failed())(image)
    with pytest.raises(ConfigError, match="label 1, but only 1 classes"):
        Predictor.from_model(make_model(classes=("red",)))(image)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"score_thr": 1.5}, "`score_thr`"),
        ({"score_thr": float("nan")}, "`score_thr`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"tile": 8}, "`tile`"),
        ({"tile": "automatic"}, "`tile`"),
        ({"channel_order": "RGB"}, "`channel_order`"),
        ({"overlap": 8}, "`tile`"),
        ({"tile": 64, "overlap": 64}, "`overlap`"),
        ({"max_pixels": 0}, "`max_pixels`"),
        ({"opacity": -0.1}, "`opacity`"),
        ({"line_width": 0}, "`line_width`"),
        ({"scales": ()}, "`scales`"),
        ({"scales": (1, 0)}, "`scales`"),
    ],
)
def test_options_out_of_range(options, name):
    with pytest.raises(ConfigError, match=name):
        Options(**options)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("score_threshold", "score_thr"), ("conf", "score_thr"), ("tile_size", "tile"), ("batch", "batch_size")],
)
def test_unknown_option_has_a_suggestion(rectangle_model, given, meant):
    with pytest.raises(TypeError, match=f"unknown option '{given}'; did you mean '{meant}'"):
        Predictor.from_model(rectangle_model, **{given: 0.5})


def test_the_signature_lists_every_option():
    listed = inspect.signature(Predictor).parameters
    for field in dataclasses.fields(Options):
        assert listed[field.name].default == field.default
        assert listed[field.name].kind is inspect.Parameter.KEYWORD_ONLY


def test_drawing_options_reach_the_overlay(rectangle_model, painted):
    image = painted(200, 300, ("red", 50, 60, 150, 160))
    thin, thick = (Predictor.from_model(rectangle_model, line_width=width)(image).draw() for width in (1, 9))
    assert (thick != image).sum() > 3 * (thin != image).sum()
    tiled = Predictor.from_model(rectangle_model, tile=128, line_width=9, score_thr=0)(image)
    assert tiled.line_width == 9


def test_channel_order(rectangle_model, painted):
    image = painted(40, 60, ("red", 5, 6, 25, 30))
    predictor = Predictor.from_model(rectangle_model, channel_order="rgb")
    for given in (np.ascontiguousarray(image[..., ::-1]), Image.fromarray(image[..., ::-1])):
        assert predictor(given).names == ["red"]
        assert (predictor(given).image == image).all()
    assert Predictor.from_model(rectangle_model)(np.ascontiguousarray(image[..., ::-1])).names == ["blue"]


def config_with(scale=None, root=None) -> dict:
    steps = [{"type": "LoadImageFromFile"}, *([{"type": "mmdet.Resize", "scale": scale}] if scale else [])]
    dataset = {"pipeline": steps, "data_root": str(root or ""), "data_prefix": {"img": "val"}}
    train = {"dataset": {"pipeline": [{"type": "RandomCrop", "crop_size": (256, 320)}]}}
    return {"test_dataloader": {"dataset": dataset}, "train_dataloader": train}


def test_best_tile(tmp_path):
    (tmp_path / "val").mkdir()
    assert best_tile({}) == 1024
    assert best_tile(config_with()) == 256
    assert best_tile(config_with((320, 240))) == 240
    for name in ("a", "b"):
        Image.new("RGB", (640, 480)).save(tmp_path / "val" / f"{name}.jpg")
    assert known_size({}, {}) is None
    assert known_size(config_with(None, tmp_path), {}) == (480, 640)
    assert known_size(config_with(None, tmp_path), {"image_size": [300, 200]}) == (200, 300)
    for malformed in (None, [0, 5], "ab", [1, 2, 3]):
        assert known_size({}, {"image_size": malformed}) is None
    assert best_tile(config_with((320, 240)), (480, 640)) == 480  # halved, as the images are
    assert best_tile(config_with(None), (480, 640)) == 640
    (tmp_path / "val" / "a.jpg").write_text("damaged")
    assert known_size(config_with(None, tmp_path), {}) == (480, 640)


def test_tile_of_the_size_that_suits_the_model(make_model, painted):
    model = make_model(cfg=config_with((320, 240)))
    predictor = Predictor.from_model(model, tile="auto")
    assert (predictor.options.tile, predictor.options.overlap) == (240, 60)
    with pytest.warns(UserWarning, match="trained on is unknown; `tile` auto is 240 pixels"):
        predictor(painted(300, 500))
    assert max(h for batch in model.batches for h, _, _ in batch) == 240


def test_automatic_tiles_leave_images_of_the_training_size_whole(make_model, painted):
    model = make_model(cfg=config_with((320, 240)))
    model.meta = {"image_size": [640, 480]}
    cells = [("red", 30, 40, 80, 100), ("blue", 380, 200, 470, 280), ("red", 500, 350, 600, 450)]
    predictor = Predictor.from_model(model, tile="auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = predictor(painted(480, 640, *cells))
        predictor(painted(640, 480))
        assert model.batches == [[(480, 640, 3)], [(640, 480, 3)]]
        corners = [(x, y) for x in (0, 640) for y in (0, 480)]
        moved = [(c, x0 + x, y0 + y, x1 + x, y1 + y) for c, x0, y0, x1, y1 in cells for x, y in corners]
        mosaic = predictor(painted(960, 1280, *moved))
    assert max(max(shape) for batch in model.batches[2:] for shape in batch) == 480
    wanted = [tuple(np.add(box, (x, y, x, y))) for box in single.boxes for x, y in corners]
    assert sorted(map(tuple, mosaic.boxes)) == sorted(wanted)
    assert len(wanted) == 12


def test_tiles_of_the_models_of_the_package():
    pytest.importorskip("mmengine")
    from visionattn.engine.config.load import load_config

    sizes = {"blood-cells": (480, 640), "digits": (256, 256), "nuclei": (256, 256), "forgery": (256, 256)}
    assert sorted(sizes) == model_names()
    for name, (height, width) in sizes.items():
        model = find_model(name)
        cfg = load_config(model.config, resolve_data=False)
        tile = best_tile(cfg, known_size(cfg, model.meta))
        assert tile >= max(height, width) or suits_whole(cfg, tile, height, width), name
        assert tile < 2 * height, name
        assert not suits_whole(cfg, tile, 2 * height, 2 * width), name


def test_shrunk_tiles_are_warned_about(make_model, painted):
    predictor = Predictor.from_model(make_model(cfg=config_with((320, 240))), tile=1024)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(painted(500, 800))  # not cut into tiles
    with pytest.warns(UserWarning, match="shrinks tiles of 1024 pixels to 240, so that .*`tile` 240 shows"):
        predictor(painted(500, 1100))


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="is unknown"):
        pick_device("gpu")
    with pytest.raises(ConfigError, match="not available"):
        pick_device("cuda:99")
