"""Annotation files in which one value after another is replaced by one that nobody expects.

Each test takes a sound file apart: every number, text, list and object in it is replaced in turn by a hostile value,
and the loader must read the result or refuse it.
"""

import copy
import json
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("mmdet")

from annotation_loaders import (
    COCO,
    INFOS,
    JSON,
    NUSCENES,
    PANOPTIC,
    TEXTS,
    draw_donors,
    dump,
    furnished,
    load_custom_data,
    load_infos,
    load_nuscenes,
    panoptic_quality,
)

from visionattn.data.coco import check_coco, segmentation_fault
from visionattn.data.convert import BCCD_CLASSES, _read_voc
from visionattn.data.mask_folders import pair_masks, read_names
from visionattn.data.panoptic_check import check_panoptic
from visionattn.errors import DataError, VisionattnError
from visionattn.heads.action.keypoints import read_points
from visionattn.heads.action.lists import read_action_list
from visionattn.heads.forgery.sets import BalancedSets, read_json
from visionattn.heads.lidar.data.kitti import read_kitti
from visionattn.heads.localization.mmlab_data import LocalizationDataset
from visionattn.heads.localization.sets import read_localization

# --- JSON ------------------------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "nan": float("nan"),
    "infinity": float("inf"),
    "minus_infinity": float("-inf"),
    "negative": -1,
    "zero": 0,
    "fraction": 0.5,
    "billion": 10**9,
    "beyond_64_bits": 2**64,
    "beyond_floats": 10**400,
    "null": None,
    "true": True,
    "text": "x",
    "empty_text": "",
    "way_out": "../../../etc/passwd",
    "absolute": "/etc/passwd",
    "nul": "a\0b",
    "half_a_surrogate": "\ud800",
    "long_text": "x" * 100_000,
    "list": [],
    "nested_list": [[[[]]]],
    "object": {},
    "long_list": [1] * 10_000,
}


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to each value in a document, the whole one included."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def replaced(document: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    document = copy.deepcopy(document)
    here = document
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return document


def fault(load: Callable[[], Any]) -> str | None:
    """What is wrong with how a loader takes a file; nothing, if it reads it or refuses it in one line."""
    try:
        load()
    except VisionattnError as error:
        return f"says {error}" if "\n" in str(error) or len(str(error)) > 2000 else None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc()[-800:]}"
    return None


def try_all(document: Any, value: Any, load: Callable[[Any], Any]) -> str:
    """Every place in turn; the first that the loader does not take well is raised."""
    found = list(places(document))
    for path in found:
        wrong = fault(lambda path=path: load(replaced(document, path, value)))
        assert wrong is None, f"at {path}: {wrong}"
    return f"{len(found)} places"


@pytest.fixture
def folder(tmp_path) -> Path:
    return furnished(tmp_path)


def each(loaders: Iterable[str], act: Callable[[str, Path], Any]) -> dict[str, Any]:
    """For `row`: what to do with each loader in a furnished folder."""

    def prepare(loader: str) -> Callable[[Path, Path], Callable[[], Any]]:
        return lambda place, trace: lambda: act(loader, furnished(place))

    return {loader: prepare(loader) for loader in loaders}


@pytest.mark.parametrize("loader", JSON)
def test_the_sound_file_is_read(loader, folder):
    document, load = JSON[loader]
    load(folder, document)


@pytest.mark.parametrize("loader", JSON)
@pytest.mark.parametrize("attack", VALUES)
def test_values(attack, loader, row, harmless):
    def act(name: str, folder: Path) -> str:
        document, load = JSON[name]
        return try_all(document, VALUES[attack], lambda changed: load(folder, changed))

    found = harmless(row(("value", attack), loader, each(JSON, act)))
    assert found.error is None, found


RAW: dict[str, bytes] = {
    "deep_nesting": b"[" * 200_000 + b"]" * 200_000,
    "deep_objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "deep_in_a_list": b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "giant_number": b"[" + b"9" * 100_000 + b"]",
    "giant_exponent": b'{"images": [1e999999999], "annotations": [], "categories": []}',
    "cut_short": b'{"images": [{"id": 1, "file_na',
    "binary": bytes(range(256)),
    "utf_16": "{}".encode("utf-16"),
    "empty": b"",
    "scalar": b"5",
    "nan": b"NaN",
    "pickle": pickle.dumps({"images": []}),
}


OF_TEXT = [name for name in JSON if name != "mmdet3d_infos"]


@pytest.mark.parametrize("loader", OF_TEXT)
@pytest.mark.parametrize("attack", RAW)
def test_text(attack, loader, row, harmless):
    def act(name: str, folder: Path) -> Any:
        data = RAW[attack]
        return JSON[name][1](folder, dict.fromkeys(NUSCENES, data) if name == "nuscenes" else data)

    found = harmless(row(("text", attack), loader, each(OF_TEXT, act)))
    assert found.ours or loader in ("manifest", "stamp"), found


# --- run lengths -----------------------------------------------------------------------------------------------------

E9 = 10**9
RUNS: dict[str, Any] = {
    "size_of_1e9": {"size": [E9, E9], "counts": [E9 * E9]},
    "size_of_1e9_in_text": {"size": [E9, E9], "counts": "PPPPPPPPPPPP1"},
    "counts_of_1e9": {"size": [48, 64], "counts": [0, E9, E9]},
    "too_few": {"size": [48, 64], "counts": [1, 2, 3]},
    "negative_counts": {"size": [48, 64], "counts": [-1, 3073]},
    "wraps_64_bits": {"size": [48, 64], "counts": [2**62, 2**62, 2**62, 2**62, 3072]},
    "wraps_32_bits": {"size": [48, 64], "counts": [2**32, 3072 - 2**32]},
    "beyond_64_bits": {"size": [48, 64], "counts": [2**70, 1]},
    "fractions": {"size": [48, 64], "counts": [1.5, 3070.5]},
    "booleans": {"size": [48, 64], "counts": [True, 3071]},
    "text_counts": {"size": [48, 64], "counts": ["1", "3071"]},
    "text_that_grows": {"size": [48, 64], "counts": "oooooooooo1"},
    "text_without_an_end": {"size": [48, 64], "counts": "PPPPPPPP"},
    "text_of_others": {"size": [48, 64], "counts": "\x7f\x80\xff"},
    "long_text": {"size": [48, 64], "counts": "1" * 1_000_000},
    "size_is_text": {"size": "48", "counts": [3072]},
    "size_is_negative": {"size": [-48, -64], "counts": [3072]},
    "size_of_one": {"size": [3072], "counts": [3072]},
    "no_counts": {"size": [48, 64]},
    "counts_is_an_object": {"size": [48, 64], "counts": {"a": 1}},
    "polygon_of_nan": [[float("nan")] * 6],
    "polygon_of_infinity": [[1e308] * 6],
    "polygon_of_giants": [[10**400] * 6],
    "polygon_of_text": [["1", "2", "3", "4", "5", "6"]],
    "polygon_of_four": [[1, 2, 3, 4]],
    "odd_polygon": [[1, 2, 3, 4, 5, 6, 7]],
    "flat_polygon": [1, 2, 3, 4, 5, 6],
}  # fmt: skip


def _with(segmentation: Any, lie: bool = False) -> dict:
    document = copy.deepcopy(COCO)
    document["annotations"][0]["segmentation"] = segmentation
    if lie:  # the image's record says the same as the mask
        document["images"][0] |= {"width": E9, "height": E9}
    return document


MASK_LOADERS: dict[str, Callable[[Path, Any], Any]] = {
    "check_coco": lambda f, s: check_coco(dump(f / "c.json", _with(s)), f),
    "check_coco_of_a_lying_image": lambda f, s: check_coco(dump(f / "c.json", _with(s, True)), f),
    "segmentation_fault": lambda f, s: _refuse(segmentation_fault(s, (64, 48))),
}


def _refuse(fault: str | None) -> None:
    if fault:
        raise DataError(fault)


@pytest.mark.parametrize("loader", MASK_LOADERS)
@pytest.mark.parametrize("attack", RUNS)
def test_masks(attack, loader, row, refused):
    act = lambda name, folder: MASK_LOADERS[name](folder, RUNS[attack])  # noqa: E731
    refused(row(("mask", attack), loader, each(MASK_LOADERS, act)))


@pytest.mark.parametrize("attack", RUNS)
def test_masks_of_donors(attack, folder, harmless):
    """Draws photographs and their objects; one that cannot be drawn is left out."""
    found = harmless(lambda: len(draw_donors(folder, _with(RUNS[attack]))))
    assert found.error is None, found


# --- names that lead out ---------------------------------------------------------------------------------------------

NAMES = {
    "up": "../secret.png",
    "up_and_down": "sub/../../secret.png",
    "down_a_link_and_up": "link/../secret.png",
    "absolute": "{outside}/secret.png",
    "windows": "..\\secret.png",
    "drive": "C:\\secret.png",
    "share": "\\\\host\\secret.png",
    "nul": "secret.png\0.png",
    "surrogate": "\ud800/secret.png",
    "long": "x" * 5000 + ".png",
    "dots": "..",
    "device": "/dev/zero",
}


def _localization(folder: Path, name: str, mask: bool = False) -> Any:
    (folder / "m").mkdir(exist_ok=True)
    image = "a.png" if mask else name
    (folder / "m" / "image_ids.txt").write_bytes((image + "\n").encode("utf-8", "surrogatepass"))
    (folder / "m" / "class_labels.txt").write_bytes((image + ",0\n").encode("utf-8", "surrogatepass"))
    if mask:
        (folder / "m" / "localization.txt").write_bytes(f"a.png,{name},\n".encode("utf-8", "surrogatepass"))
    return LocalizationDataset(ann_file=str(folder / "m"), data_prefix={"img_path": str(folder)}).load_data_list()


def _kitti(folder: Path, name: str) -> Any:
    (folder / "training" / "velodyne").mkdir(parents=True)
    (folder / "ImageSets").mkdir()
    (folder / "ImageSets" / "train.txt").write_bytes(name.encode("utf-8", "surrogatepass"))
    return read_kitti(folder, "train")


def _tables(folder: Path, name: str, which: int) -> Any:
    document = copy.deepcopy(NUSCENES)
    document["sample_data"][which]["filename"] = name
    return load_nuscenes(folder, document)


def _list(folder: Path, name: str) -> Any:
    (folder / "names.txt").write_bytes((name + "\n").encode("utf-8", "surrogatepass"))
    return pair_masks(folder / "sub", folder / "sub", read_names(folder / "names.txt"))


def _actions(folder: Path, line: str) -> Any:
    (folder / "list.csv").write_bytes(line.encode("utf-8", "surrogatepass"))
    return read_action_list(folder / "list.csv", folder, folder)


def _panoptic(folder: Path, name: str) -> Any:
    document = copy.deepcopy(PANOPTIC)
    document["images"][0]["file_name"] = name
    return check_panoptic(dump(folder / "c.json", document), folder, folder / "maps")


def _coco(folder: Path, name: str) -> Any:
    document = copy.deepcopy(COCO)
    document["images"][0]["file_name"] = name
    return check_coco(dump(folder / "c.json", document), folder)


def _quality_of(folder: Path, name: str) -> Any:
    document = copy.deepcopy(PANOPTIC)
    document["annotations"][0]["file_name"] = name
    return panoptic_quality(folder, document)


PATHS: dict[str, Callable[[Path, str], Any]] = {
    "coco": _coco,
    "panoptic": _panoptic,
    "panoptic_quality": _quality_of,
    "custom_data": lambda f, n: load_custom_data(f, {**COCO, "images": [{**COCO["images"][0], "file_name": n}]}),
    "localization_image": _localization,
    "localization_mask": lambda f, n: _localization(f, n, True),
    "forgery_json": lambda f, n: read_json(dump(f / "c.json", [[n, "Negative"]]), f),
    "forgery_json_mask": lambda f, n: read_json(dump(f / "c.json", [["a.png", n]]), f),
    "balanced_sets": lambda f, n: BalancedSets(dump(f / "c.json", [["JsonDataset", n]]), root=f),
    "kitti_split": _kitti,
    "nuscenes": lambda f, n: _tables(f, n, 0),
    "nuscenes_sweep": lambda f, n: _tables(f, n, 1),
    "mask_list": _list,
    "action_video": lambda f, n: _actions(f, f"{n},0\n"),
    "action_skeleton": lambda f, n: _actions(f, f"a.mp4,{n},0\n"),
}


@pytest.mark.parametrize("loader", PATHS)
@pytest.mark.parametrize("attack", NAMES)
def test_names(attack, loader, row, refused):
    def act(loader: str, folder: Path) -> Any:
        outside = folder.parent / f"outside {loader}"
        (outside / "sub").mkdir(parents=True)
        (folder / "link").symlink_to(outside / "sub")
        (folder / "sub").mkdir()
        for place in (outside, folder.parent, folder / "sub"):
            Image.new("RGB", (64, 48)).save(place / "secret.png")
        return PATHS[loader](folder, NAMES[attack].replace("{outside}", str(outside)))

    refused(row(("name", attack), loader, each(PATHS, act)))


@pytest.mark.parametrize("name", ["../secret.bin", "/dev/zero", "a/../../secret.bin", "sweeps/../../secret.bin"])
def test_names_of_mmdet3d_infos(name, folder):
    """Lists hold paths of the machine that wrote them: only the last part of one that leads out counts."""
    document = copy.deepcopy(INFOS)
    document["data_list"][0]["lidar_points"]["lidar_path"] = name
    document["data_list"][0]["lidar_sweeps"][0]["lidar_points"]["lidar_path"] = name
    frame = load_infos(folder, document)[0]
    for path in (frame.path, frame.read.sweeps[0].path):
        assert path.resolve().is_relative_to(folder.resolve())


def test_names_in_subfolders_are_taken(folder):
    """What is refused above is refused for where it leads."""
    (folder / "train" / "x").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(folder / "train" / "x" / "a..b.png")
    assert _coco(folder, "train/x/a..b.png").images == 1
    assert read_json(dump(folder / "c.json", [["train/x/a..b.png", "Negative"]]), folder)[0].image.is_file()
    assert read_json(dump(folder / "c.json", [[str(folder / "a.png"), "Negative"]]))[0].image.is_file()
    assert read_json(dump(folder / "c.json", [[str(folder / "a.png"), "Negative"]]), folder)[0].image.is_file()


# --- text files ------------------------------------------------------------------------------------------------------

WORDS = {
    "nan": "nan",
    "infinity": "inf",
    "negative": "-1",
    "fraction": "0.5",
    "beyond_64_bits": str(2**64),
    "giant_digits": "9" * 5000,
    "giant_exponent": "1e999",
    "other_digits": "٣",
    "superscript": "²",
    "underscores": "1_0",
    "hexadecimal": "0x10",
    "empty": "",
    "nul": "a\0b",
    "text": "x",
    "comma": "1,1",
    "long": "x" * 100_000,
    "quote": '"',
}


def fields(text: str) -> Iterator[tuple[int, int]]:
    """Where each field of a line or an element begins and ends."""
    import re

    for found in re.finditer(r"[^\s,<>/:]+", text):
        yield found.span()


@pytest.mark.parametrize("loader", TEXTS)
@pytest.mark.parametrize("attack", WORDS)
def test_words(attack, loader, row, harmless):
    def act(name: str, folder: Path) -> int:
        texts, load = TEXTS[name]
        load(folder, texts)
        count = 0
        for file, text in texts.items():
            for start, end in fields(text):
                count += 1
                changed = texts | {file: text[:start] + WORDS[attack] + text[end:]}
                wrong = fault(lambda changed=changed: load(folder, changed))
                assert wrong is None, f"{file} at {start}: {wrong}"
        return count

    found = harmless(row(("word", attack), loader, each(TEXTS, act)))
    assert found.error is None, found


XML = {
    "laughs": '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "' + "&a;" * 10 + '">]><annotation>&b;</annotation>',
    "external": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
    "parameter": '<!DOCTYPE x SYSTEM "http://host/x.dtd"><annotation/>',
    "deep": "<a>" * 100_000 + "</a>" * 100_000,
    "many_attributes": "<annotation " + " ".join(f'a{n}="1"' for n in range(10_000)) + "/>",
}


@pytest.mark.parametrize("attack", [*XML, "laughs_in_utf_16"])
def test_xml(attack, tmp_path, harmless):
    assert BCCD_CLASSES
    text = XML[attack.removesuffix("_in_utf_16")]
    (tmp_path / "a.xml").write_bytes(text.encode("utf-16" if attack.endswith("16") else "utf-8"))
    found = harmless(lambda: type(_read_voc(tmp_path / "a.xml", 64, 48)))
    assert found.ours or attack in ("deep", "many_attributes"), found


BOMBS: dict[str, tuple[str, str]] = {
    "label_of_a_billion": ("l", "a.mp4,999999999999\n"),
    "csv_far_corner": ("a.csv", "frame,person,joint,x,y\n0,0,0,1,1\n999999,999,999,1,1\n"),
    "csv_long_clip": ("a.csv", "frame,person,joint,x,y\n999999,31,0,1,1\n"),
    "ntu_counts": ("a.skeleton", "999999999\n999999999\n"),
    "ntu_empty_frames": ("a.skeleton", "1000000\n" + "0\n" * 1_000_000),
    "ntu_one_crowd": (
        "a.skeleton", "200000\n1000\n" + ("x\n25\n" + "0 0 0 0 0 1 1\n" * 25) * 1000 + "0\n" * 199_999,
    ),
    "kinetics_last_frame": (
        "a.json", json.dumps({"data": [{"frame_index": 10**6, "skeleton": [{"pose": [1.0] * 2000}] * 900}]}),
    ),
    "coco_crowd": (
        "a.json",
        json.dumps({"images": [{"id": n} for n in range(50_000)],
                    "annotations": [{"image_id": 0, "keypoints": [1, 1, 1] * 100}] * 900}),
    ),
    "smarthome_joints": ("a.json", json.dumps({"frames": [[]] * 100_000, "njts": 10**9})),
}  # fmt: skip


@pytest.mark.parametrize("attack", BOMBS)
def test_claims_of_memory(attack, tmp_path, harmless):
    name, text = BOMBS[attack]
    (tmp_path / name).write_text(text)
    call = (lambda: read_action_list(tmp_path / "l")) if name == "l" else (lambda: read_points(tmp_path / name).shape)
    found = harmless(call, megabytes=500)
    assert found.ours, found


def test_a_label_of_a_million_makes_no_million_names(folder, refused):
    (folder / "image_ids.txt").write_text("a.png\n")
    (folder / "class_labels.txt").write_text("a.png,99999999\n")
    refused(lambda: read_localization(folder))
