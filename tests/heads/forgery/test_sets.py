"""Forgery datasets on disk: pairing, formats, balance, what is refused."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.forgery.sets import (
    BalancedSets,
    read_benco,
    read_brgen,
    read_json,
    read_mani,
    read_pairs,
    read_truth,
)


def picture(path, value=100, size=(8, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


@pytest.fixture
def mani(tmp_path):
    for stem in ("b", "a", "c_x"):
        picture(tmp_path / "Tp" / f"{stem}.jpg")
    for name in ("a_gt.png", "b_mask.png", "c_x.png"):
        picture(tmp_path / "Gt" / name, 255)
    picture(tmp_path / "Au" / "z.jpg")
    return tmp_path


def test_mani_pairs_by_stem(mani):
    items = read_mani(mani)
    assert [(i.image.name, i.mask.name) for i in items] == [
        ("a.jpg", "a_gt.png"), ("b.jpg", "b_mask.png"), ("c_x.jpg", "c_x.png"),
    ]  # fmt: skip
    assert [i.mask is None for i in read_mani(mani, with_authentic=True)] == [False, False, False, True]
    assert read_benco(mani) == items


def test_a_stray_file_is_an_error_and_shifts_nothing(mani):
    picture(mani / "Gt" / "aa_mask.png", 255)
    with pytest.raises(DataError, match=r"aa_mask.png: has no image"):
        read_mani(mani)
    (mani / "Gt" / "aa_mask.png").unlink()
    (mani / "Gt" / "b_mask.png").unlink()
    with pytest.raises(DataError, match=r"b.jpg: has no mask"):
        read_mani(mani)
    picture(mani / "Gt" / "b.png")
    picture(mani / "Gt" / "b_gt.png")
    with pytest.raises(DataError, match="both masks of 'b'"):
        read_mani(mani)


def test_brgen_names_and_balance(tmp_path):
    for number in range(2):
        picture(tmp_path / "Au" / f"COCO_{number}.png")
        for method in ("MAT", "LaMa", "SDXL"):
            for region in ("Stuff", "Background"):
                picture(tmp_path / "Tp" / f"{method}_{region}_COCO_{number}.png")
                picture(tmp_path / "Gt" / f"{method}_{region}_COCO_{number}_mask.png", 255)
    items = read_brgen(tmp_path)
    assert Counter(i.mask is None for i in items) == {False: 12, True: 2}
    forged = next(i for i in items if i.image.name == "MAT_Stuff_COCO_1.png")
    assert (forged.source, forged.kind) == ("COCO_1", "MAT_Stuff")
    assert forged.mask.name == "MAT_Stuff_COCO_1_mask.png"
    balanced = read_brgen(tmp_path, balanced=True)
    assert Counter(i.mask is None for i in balanced) == {False: 2, True: 2}
    assert balanced == read_brgen(tmp_path, balanced=True)
    assert any(read_brgen(tmp_path, balanced=True, seed=s) != balanced for s in range(1, 6))


def test_brgen_splits(tmp_path):
    for name in ("COCO_00012", "COCO_00034", "Places_x_5"):
        picture(tmp_path / "Au" / f"{name}.png")
        picture(tmp_path / "Tp" / f"MAT_Stuff_{name}.png")
        picture(tmp_path / "Gt" / f"MAT_Stuff_{name}_mask.png", 255)

    def sources(content, name="list.txt"):
        file = tmp_path / "lists" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content, encoding="utf-8")
        return [(i.source, i.mask is None) for i in read_brgen(tmp_path, names=file)]

    both = [("COCO_00012", False), ("COCO_00012", True)]
    assert sources("train2017/00012.jpg\n") == both  # the name of the original dataset
    with pytest.warns(UserWarning, match=r"list\.txt: 1 of its 2 names are not images of .*, such as unknown"):
        assert sources("\ufeffCOCO_00012.png\r\n\r\nunknown.jpg") == both
    assert sources('["00012.jpg", "Places_x_5.png"]', "list.json") == [
        ("COCO_00012", False), ("Places_x_5", False), ("COCO_00012", True), ("Places_x_5", True),
    ]  # fmt: skip
    (tmp_path / "lists" / "list.json").unlink()
    (tmp_path / "lists" / "more").mkdir()
    (tmp_path / "lists" / "more" / "Places_image_list.txt").write_text("x_5.jpg\n")
    with pytest.warns(UserWarning, match="lists: 1 of its 3 names"):
        assert len(read_brgen(tmp_path, names=tmp_path / "lists")) == 4
    with pytest.raises(DataError, match="none of its 1 names is an image of"):
        sources("00099.jpg")
    with pytest.raises(DataError, match="must contain names of images, got 7"):
        sources("[7]", "list.json")
    with pytest.raises(DataError, match=r"none\.txt: cannot be read as a list of names"):
        read_brgen(tmp_path, names=tmp_path / "none.txt")


def test_json(tmp_path):
    picture(tmp_path / "x" / "1.png")
    picture(tmp_path / "x" / "1m.png", 255)
    file = tmp_path / "set.json"
    file.write_text(json.dumps([["x/1.png", "x/1m.png"], ["x/1.png", "Negative"]]))
    items = read_benco(file)
    assert [i.mask is None for i in items] == [False, True]
    assert read_json(file, tmp_path) == items
    file.write_text(json.dumps([["x/2.png", "Negative"]]))
    with pytest.raises(DataError, match=r"'x/2.png' not found"):
        read_json(file)
    for bad in ("{", "{}", '[["a"]]'):
        file.write_text(bad)
        with pytest.raises(DataError, match=r"set.json"):
            read_json(file)


def test_pairs_without_a_mask_are_authentic(tmp_path):
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    assert all(i.mask is None for i in read_pairs(tmp_path))
    picture(tmp_path / "masks" / "b.png", 255)
    assert [i.mask is None for i in read_pairs(tmp_path)] == [True, False]
    with pytest.raises(DataError, match="folder not found"):
        read_pairs(tmp_path / "nothing")


def test_balanced_sets(mani, tmp_path):
    listed = tmp_path / "one.json"
    listed.write_text(json.dumps([["Au/z.jpg", "Negative"]]))
    file = tmp_path / "protocol.json"
    file.write_text(json.dumps([["ManiDataset", "."], ["JsonDataset", "one.json"]]))
    sets = BalancedSets(file, sample_number=30)
    assert len(sets) == 60
    first = [sets.draw(i) for i in range(30)]
    assert len({i.image for i in first}) == 3
    assert {sets.draw(i).image.name for i in range(30, 60)} == {"z.jpg"}
    assert first == [sets.draw(i) for i in range(30)]
    assert first != [sets.draw(i, epoch=1) for i in range(30)]
    with pytest.raises(IndexError):
        sets.draw(60)
    file.write_text(json.dumps([["Other", "."]]))
    with pytest.raises(DataError, match="'Other'"):
        BalancedSets(file)


def test_truth_is_the_mean_above_half(tmp_path):
    mask = np.zeros((2, 3, 3), np.uint8)
    mask[0, 0] = 128
    mask[0, 1] = 127
    mask[1, 0] = (255, 128, 0)  # mean 127.67
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    assert read_truth(tmp_path / "m.png").tolist() == [[1, 0, 0], [1, 0, 0]]
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(DataError, match="is not an image"):
        read_truth(tmp_path / "broken.png")
