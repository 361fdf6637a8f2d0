"""The wheel, installed in a virtual environment: the commands work outside of a clone.

To be fast and to need no network, the environment takes the dependencies from the running one, and nothing else.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fixtures.paths import REPO

pytest.importorskip("mmdet")
pytest.importorskip("hatchling")
pytest.importorskip("hatch_fancy_pypi_readme")

from visionattn import __version__

SUFFIXES = (".py", ".html", ".css", ".js", ".svg", ".safetensors")
CONFIG = "atss_dinat-pico_fpn_coco_custom"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=REPO, check=True, capture_output=True, timeout=300)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Callable[..., str]:
    """A function that calls a program of an environment with the wheel, in an empty folder, and returns its output."""
    home = tmp_path_factory.mktemp("installed")
    venv, work = home / "venv", home / "work"
    work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=300)
    pip = [sys.executable, "-m", "pip", "--python", str(venv), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=300)
    (site,) = venv.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in others))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VISIONATTN_"))}

    def call(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(venv / "bin" / program), *arguments], cwd=work, env=environment, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call.work, call.site = work, site
    return call


def test_content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"visionattn", f"visionattn-{__version__}.dist-info"}
    files = [path for path in (REPO / "visionattn").rglob("*") if path.suffix in SUFFIXES]
    wanted = {path.relative_to(REPO).as_posix() for path in files}
    wanted |= {f"visionattn/{path.relative_to(REPO).as_posix()}" for path in (REPO / "configs").rglob("*.py")}
    assert wanted | {"visionattn/py.typed", "visionattn/configs/index.json"} <= set(names)
    assert {Path(name).suffix for name in names if name.startswith("visionattn/")} <= {
        *SUFFIXES, ".csv", ".json", ".typed", ".md", ".jpg", ".png", ".txt"
    }  # fmt: skip
    assert "License-Expression: Apache-2.0" in text
    assert "# visionattn" in text
    assert "](docs/" not in text, "PyPI cannot resolve links to files of the repository"


def test_the_package_is_that_of_the_wheel(installed):
    place = installed("python", "-c", "import visionattn; print(visionattn.__file__)")
    assert Path(place.strip()) == installed.site / "visionattn/__init__.py"
    assert installed("visionattn", "--version").split() == ["visionattn", __version__]


def test_the_first_command(installed):
    rows, columns = np.mgrid[:256, :256]
    image = np.full((256, 256), 12.0)
    for y, x in ((60, 70), (60, 180), (150, 120), (200, 210)):  # discs, as nuclei in fluorescence images
        image += 120 * np.exp(-(np.maximum(np.hypot(rows - y, columns - x) - 12, 0) ** 2) / 8)
    cv2.imwrite(str(installed.work / "cells.png"), image.clip(0, 255).astype(np.uint8))
    installed("visionattn", "infer", "cells.png", "--model", "nuclei", "--out", "found")
    (record,) = json.loads((installed.work / "found/predictions.json").read_text())["images"]
    assert (installed.work / "found" / record["overlay"]).is_file()
    assert "nuclei" in installed("visionattn", "models")


def test_lists(installed):
    assert CONFIG in installed("visionattn", "configs", "custom")
    (entry,) = json.loads(installed("visionattn", "configs", CONFIG, "--json"))
    assert Path(entry["path"]).is_relative_to(installed.site)
    report = json.loads(installed("visionattn", "doctor", "--json"))
    assert report["visionattn"] == __version__
    assert [row for row in report["packages"] if row["problem"]] == []


def test_a_config_trains_by_name_and_the_run_predicts(installed, shapes_dir):
    options = [f"custom_data.root={shapes_dir}", "custom_data.train_ann=train.json", "custom_data.val_ann=val.json",
               "train_dataloader.batch_size=2", "max_iters=2", "train_cfg.val_interval=9"]  # fmt: skip
    run = f"work_dirs/{CONFIG}"
    output = installed("visionattn", "train", CONFIG, "--cfg-options", *options)
    assert "done: 2 iterations" in output
    assert f"next: visionattn infer IMAGE_OR_FOLDER --run {run}" in output
    image = str(shapes_dir / "images/000.png")
    installed("visionattn", "infer", image, "--run", run, "--out", "by-run", "--score-thr", "0")
    record = json.loads((installed.work / "by-run/predictions.json").read_text())
    assert [category["name"] for category in record["categories"]] == ["red", "blue"]
    installed("visionattn", "configs", CONFIG, "--copy", "mine.py")
    assert "no problems found" in installed("visionattn", "check", "mine.py", "--cfg-options", *options)
