import shutil

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.localization.sets import read_class_folders, read_localization


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


GOOD = {
    "image_ids": "a/1.jpg\nb/2.jpg\n",
    "class_labels": "b/2.jpg,1\na/1.jpg,0\n",
    "image_sizes": "a/1.jpg,40,30\nb/2.jpg,10,20\n",
    "localization": "a/1.jpg,1,2,3,4\nb/2.jpg,0,0,9,9\na/1.jpg,5,5.5,6,7\n",
}


def test_reads_labels_sizes_and_several_boxes(tmp_path):
    first, second = read_localization(write(tmp_path / "test", **GOOD), need_objects=True)
    assert (first.image_id, first.label, first.size) == ("a/1.jpg", 0, (30, 40))
    assert first.boxes.tolist() == [[1, 2, 3, 4], [5, 5.5, 6, 7]]
    assert (second.label, second.size, second.boxes.tolist()) == (1, (20, 10), [[0, 0, 9, 9]])


def test_reads_masks_with_the_ignore_mask_of_the_first_line(tmp_path):
    text = "a/1.jpg,m/1.png,i/1.png\na/1.jpg,m/2.png,\nb/2.jpg,m/3.png,\n"
    first, second = read_localization(write(tmp_path / "test", **{**GOOD, "localization": text}))
    assert (first.masks, first.ignore) == (("m/1.png", "m/2.png"), "i/1.png")
    assert (second.masks, second.ignore) == (("m/3.png",), None)
    only_ignored = write(tmp_path / "test", localization=text.replace("m/3.png,", ",i/3.png"))
    assert [image.masks for image in read_localization(only_ignored)] == [("m/1.png", "m/2.png"), ()]
    with pytest.raises(DataError, match=r"no box or mask for 'b/2\.jpg'"):
        read_localization(only_ignored, need_objects=True)


def test_training_needs_labels_only(tmp_path):
    needed = {name: GOOD[name] for name in ("image_ids", "class_labels")}
    images = read_localization(write(tmp_path / "train", **needed))
    assert [image.label for image in images] == [0, 1]
    assert images[0].boxes.shape == (0, 4)
    assert images[0].size is None
    assert isinstance(images[0].boxes, np.ndarray)
    with pytest.raises(DataError, match=r"localization\.txt"):
        read_localization(tmp_path / "train", need_objects=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ids": "a/1.jpg\na/1.jpg\n"}, r"image_ids\.txt:2: duplicate image 'a/1\.jpg'"),
        ({"image_ids": "\n"}, "contains no images"),
        ({"class_labels": "a/1.jpg,0\n"}, r"no label for 'b/2\.jpg'"),
        ({"class_labels": "a/1.jpg,cat\nb/2.jpg,1"}, r":1: must be a whole number .* got 'cat'"),
        ({"class_labels": "c.jpg,0\n"}, r":1: 'c\.jpg' is not in image_ids"),
        ({"image_sizes": "a/1.jpg,40\n"}, r"image_sizes\.txt:1: must have 3 comma-separated fields, got 2"),
        ({"localization": "a/1.jpg,1,2,3,x\n"}, "four numbers"),
        ({"localization": "a/1.jpg,5,2,3,4\n"}, "x0 <= x1"),
        ({"localization": "a/1.jpg,1,2,3,4\n"}, r"no box or mask for 'b/2\.jpg'"),
    ],
)
def test_malformed_metadata_is_named_with_its_line(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_localization(write(tmp_path / "test", **{**GOOD, **change}), need_objects=True)


def test_missing_folder_and_file_are_named(tmp_path):
    with pytest.raises(DataError, match="folder of localization metadata not found"):
        read_localization(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"image_ids\.txt"):
        read_localization(tmp_path / "empty")


@pytest.fixture
def folders(tmp_path):
    for name in ("cat/1.jpg", "cat/more/2.png", "dog/3.webp", "dog/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "boxes.csv").write_text("cat/more/2.png,1,2,3,4\ncat/more/2.png,5,5,6,6\n")
    return tmp_path


def test_folders_of_classes(folders):
    images = read_class_folders(folders, ["dog", "bird", "cat"], folders / "boxes.csv")
    assert [(image.image_id, image.label) for image in images] == [
        ("dog/3.webp", 0), ("cat/1.jpg", 2), ("cat/more/2.png", 2),
    ]  # fmt: skip
    assert [len(image.boxes) for image in images] == [0, 0, 2]


def test_folders_that_do_not_fit(folders):
    with pytest.raises(DataError, match="its folder 'dog' is not one of the classes cat"):
        read_class_folders(folders, ["cat"])
    (folders / "boxes.csv").write_text("cat/9.jpg,1,2,3,4\n")
    with pytest.raises(DataError, match=r"boxes\.csv:1: 'cat/9\.jpg' is not in"):
        read_class_folders(folders, ["cat", "dog"], folders / "boxes.csv")
    (folders / "bird").mkdir()
    for name in ("cat", "dog"):
        shutil.rmtree(folders / name)
    with pytest.raises(DataError, match="has no images in its folders bird"):
        read_class_folders(folders, ["bird"])
    with pytest.raises(DataError, match="folder not found"):
        read_class_folders(folders / "absent", ["bird"])
