"""Pairs of images and index masks, and what is checked of them."""

import numpy as np
import pytest

pytest.importorskip("PIL.Image")

from PIL import Image

from visionattn.data.mask_folders import check_masks, pair_masks, read_names
from visionattn.errors import DataError

CLASSES = ("ground", "road", "car")


def save(path, values, mode=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8), mode).save(path)


@pytest.fixture
def folders(tmp_path):
    """Three images with other suffixes, one in a folder, and their masks of 4 x 6 pixels."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "town/a.jpeg"):
        save(tmp_path / "images" / name, rng.integers(0, 255, (4, 6, 3)))
        mask = rng.integers(0, 3, (4, 6))
        mask[0] = 255
        save((tmp_path / "masks" / name).with_suffix(".png"), mask)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images", tmp_path / "masks"


def test_pairs_by_name_whatever_the_suffix(folders):
    images, masks = folders
    found = [(i.relative_to(images).as_posix(), m.relative_to(masks).as_posix()) for i, m in pair_masks(*folders)]
    assert found == [("a.png", "a.png"), ("b.JPG", "b.png"), ("town/a.jpeg", "town/a.png")]


def test_lists_take_a_part(folders, tmp_path):
    (tmp_path / "names.txt").write_text("town/a\n\nb.JPG\n")
    names = read_names(tmp_path / "names.txt")
    assert [i.name for i, _ in pair_masks(*folders, names)] == ["b.JPG", "a.jpeg"]
    with pytest.raises(DataError, match=r"images: the image 'c' in the list of names does not exist"):
        pair_masks(*folders, ["c.png"])


def test_masks_beside_their_images(folders):
    images, masks = folders
    for mask in masks.rglob("*.png"):
        mask.rename((images / mask.relative_to(masks)).with_name(f"{mask.stem}_mask.png"))
    assert [m.name for _, m in pair_masks(images, images, mask_suffix="_mask.png")] == [
        "a_mask.png",
        "b_mask.png",
        "a_mask.png",
    ]


def test_lists_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"no\.txt: the list of images does not exist"):
        read_names(tmp_path / "no.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="list of images is empty"):
        read_names(tmp_path / "empty.txt")


def test_missing_masks_images_and_folders(folders, tmp_path):
    images, masks = folders
    (masks / "b.png").unlink()
    (masks / "town/a.png").unlink()
    with pytest.raises(DataError, match=r"b\.JPG: has no mask; .*masks/b\.png does not exist \(and 1 more images\)"):
        pair_masks(*folders)
    with pytest.raises(DataError, match=r"no: the folder does not exist"):
        pair_masks(images, tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: the folder contains no image"):
        pair_masks(tmp_path / "empty", masks)
    save(images / "a.jpg", np.zeros((4, 6, 3)))
    with pytest.raises(DataError, match=r"differs from a\.jpg only in its suffix"):
        pair_masks(*folders)


def test_counts_of_sound_masks(folders):
    pairs = pair_masks(*folders)
    counts = check_masks(pairs, CLASSES)
    expected = sum(np.bincount(np.asarray(Image.open(mask)).ravel(), minlength=256) for _, mask in pairs)
    np.testing.assert_array_equal(counts, expected)
    assert counts[255] == 18


def test_palette_and_binary_masks_hold_numbers(folders):
    pairs = pair_masks(*folders)
    picture = Image.fromarray(np.full((4, 6), 2, np.uint8), "P")
    picture.putpalette([9, 9, 9, 80, 80, 80, 200, 0, 0])
    picture.save(pairs[0][1])
    Image.new("1", (6, 4), 1).save(pairs[1][1])
    Image.fromarray(np.full((4, 6), 1, np.uint16)).save(pairs[2][1])
    counts = check_masks(pairs, CLASSES)
    assert counts[:3].tolist() == [0, 48, 24]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 6), 3), r"contains the value 3 \(24 pixels\), but the 3 classes are 0 to 2, and 255 is ignored"),
        (np.zeros((6, 4)), r"is 4 x 6 pixels, but its image b\.JPG is 6 x 4"),
        (np.zeros((4, 6, 3)), r"is a colour image \(RGB\)"),
    ],
)
def test_masks_that_do_not_fit(folders, values, message):
    save(folders[1] / "b.png", values)
    with pytest.raises(DataError, match=rf"masks/b\.png: {message}"):
        check_masks(pair_masks(*folders), CLASSES)


def test_values_beyond_eight_bits_are_not_cut(folders):
    Image.fromarray(np.full((4, 6), 257, np.uint16)).save(folders[1] / "b.png")
    with pytest.raises(DataError, match=r"b\.png: contains the value 257"):
        check_masks(pair_masks(*folders), CLASSES)


def test_damage_and_compression(folders):
    images, masks = folders
    (masks / "a.png").write_bytes((masks / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"a\.png: cannot be opened as a mask"):
        check_masks(pair_masks(*folders), CLASSES)
    Image.new("L", (6, 4)).save(masks / "a.png", format="JPEG")
    with pytest.raises(DataError, match=r"a\.png: is a JPEG file, and JPEG compression changes values"):
        check_masks(pair_masks(*folders), CLASSES)
    Image.new("L", (6, 4)).save(masks / "a.png")
    (images / "b.JPG").write_bytes(b"no")
    with pytest.raises(DataError, match=r"b\.JPG: cannot be opened as an image"):
        check_masks(pair_masks(*folders), CLASSES)


def test_turned_photographs_have_the_size_they_are_read_in(folders):
    picture = Image.new("RGB", (4, 6))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folders[0] / "b.JPG", exif=exif)
    check_masks(pair_masks(*folders), CLASSES)


def test_black_and_white_masks_train_nothing(folders):
    for _, mask in pair_masks(*folders):
        save(mask, np.where(np.arange(24).reshape(4, 6) < 9, 255, 0))
    with pytest.raises(DataError, match="3 masks contain only 0 and 255, but 255 is ignored; 'road' must be 1"):
        check_masks(pair_masks(*folders), CLASSES)
