"""A dataset of forgeries on disk."""

import json

import cv2
import numpy as np
import pytest

from visionattn.cli import main
from visionattn.errors import DataError
from visionattn.heads.forgery.create.forge import forge_folder
from visionattn.heads.forgery.sets import read_pairs, read_truth


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        small = rng.integers(0, 255, (5, 6, 3)).astype(np.uint8)
        image = cv2.resize(small, (96, 80), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 6, (80, 96, 3))
        cv2.imwrite(str(folder / f"p{index}.png"), np.clip(image, 0, 255).astype(np.uint8))
    return folder


def test_what_is_written(photos, tmp_path):
    out = tmp_path / "out"
    report = forge_folder([photos], out, count=6, crop=64, quality=(90, 90), operations=["noise", "splice"], seed=3)
    items = read_pairs(out)
    assert len(items) == 6
    assert report.forged == sum(i.mask is not None for i in items) == 3
    assert report.preview.is_file()
    manifest = json.loads((out / "manifest.json").read_text())
    sources = {0: set(), 1: set()}
    for record, item in zip(manifest["images"], items, strict=True):
        assert cv2.imread(str(out / record["image"])).shape == (64, 64, 3)
        assert record["label"] == int(item.mask is not None)
        sources[record["label"]].add(record["source"])
        assert record["steps"][-1] == {"operation": "save", "quality": 90}
        if item.mask is not None:
            assert read_truth(item.mask).mean() == pytest.approx(record["steps"][0]["area"], abs=1e-4)
    assert sources[0] == sources[1]  # each photograph once forged and once not
    again = tmp_path / "again"
    forge_folder([photos], again, count=6, crop=64, quality=(90, 90), operations=["noise", "splice"], seed=3)
    for item in items:
        assert item.image.read_bytes() == (again / "images" / item.image.name).read_bytes()


def test_how_parts_are_pasted_is_asked_for(photos, tmp_path, capsys):
    def steps(out, *options):
        command = ["forge", str(photos), "--out", str(out), "--count", "12", "--operations", "splice", "--share", "1"]
        assert main([*command, *options]) == 0, capsys.readouterr().err
        return [record["steps"][0] for record in json.loads((out / "manifest.json").read_text())["images"]]

    plain = steps(tmp_path / "plain", "--feather", "0", "--colour-match", "0", "--geometry", "0")
    assert all(s["feather"] == 0 and "colour_match" not in s and "scale" not in s for s in plain)
    changed = steps(tmp_path / "changed", "--feather", "9", "--colour-match", "1", "--geometry", "1")
    assert all(s["colour_match"] and "scale" in s for s in changed)
    assert max(s["feather"] for s in changed) > 0


def test_wrong_arguments(photos, tmp_path):
    for arguments in (dict(count=0), dict(every=0), dict(share=1.5), dict(crop=31), dict(area=(0.5, 0.2)),
                      dict(feather=-1), dict(geometry=2)):  # fmt: skip
        with pytest.raises(DataError, match=f"`{next(iter(arguments))}` must be"):
            forge_folder([photos], tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
