"""`visionattn.openmmlab`: types by name, and jobs from other packages."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mmdet")

import visionattn.openmmlab as openmmlab
from visionattn.engine.config.options import find_class
from visionattn.errors import ConfigError


def test_every_job_is_a_package():
    assert all(find_spec(name) is not None for name in openmmlab.JOBS)


def test_types_are_attributes_and_resolve_from_the_registries_of_mmdet_and_mmseg():
    from mmdet.registry import MODELS as DET
    from mmdet.registry import TRANSFORMS as DET_TRANSFORMS
    from mmseg.registry import MODELS as SEG

    assert DET.get("visionattn.CAM") is SEG.get("visionattn.CAM") is openmmlab.CAM
    assert DET_TRANSFORMS.get("visionattn.PackPoints") is openmmlab.PackPoints
    assert {"Backbone", "CocoMetric", "ForgeryLocalizer", "BF16OptimWrapper", "add_job"} <= set(dir(openmmlab))
    with pytest.raises(AttributeError, match="Nothing"):
        _ = openmmlab.Nothing
    with pytest.raises(ImportError):
        from visionattn.openmmlab import Nothing  # noqa: F401


def run(code: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300, cwd=folder
    )
    assert done.returncode == 0, done.stderr


def test_types_resolve_in_a_fresh_process_before_openmmlab_is_imported(tmp_path):
    run(
        """
import sys
from visionattn.engine.registry import MODELS
assert "visionattn.heads.forgery.mmlab" not in sys.modules
from mmengine.registry import MODELS as ROOT
assert ROOT.get("visionattn.ForgeryLocalizer").__module__ == "visionattn.heads.forgery.mmlab"
assert MODELS.get("Backbone").__name__ == "Backbone"
""",
        tmp_path,
    )


SPAWNED = """
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS
import visionattn.openmmlab

class Built(torch.utils.data.Dataset):
    '''Builds its transform in the worker process.'''
    def __len__(self):
        return 2
    def __getitem__(self, index):
        import visionattn.engine.registry
        from mmdet.registry import TRANSFORMS
        step = TRANSFORMS.build(dict(type="visionattn.RandomTranspose", prob=1.0))
        return type(step).__name__

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Built(), num_workers=1, multiprocessing_context="spawn", collate_fn=list)
    assert [batch[0] for batch in loader] == ["RandomTranspose"] * 2
"""


def test_types_resolve_in_spawned_data_workers(tmp_path):
    (tmp_path / "script.py").write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package with an ``mmlab`` module and returns its name."""

    def write(name: str, text: str | None) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        if text is not None:
            (tmp_path / name / "mmlab.py").write_text(text)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("visionattn.engine.registry._locations", [])
    monkeypatch.setattr("visionattn.inference.job._modules", [])
    return write


def test_a_job_of_another_package_is_imported_on_the_first_look_up(package):
    from mmdet.registry import MODELS

    name = package(
        "package_with_types",
        "from torch import nn\n"
        "from visionattn.engine.registry import MODELS\n\n"
        "@MODELS.register_module()\n"
        "class Toy(nn.Identity):\n    pass\n",
    )
    assert MODELS.get("visionattn.Backbone") is openmmlab.Backbone  # locations were imported before
    openmmlab.add_job(name)
    openmmlab.add_job(name)
    assert "package_with_types.mmlab" not in sys.modules
    assert MODELS.get("visionattn.Toy") is openmmlab.Toy is find_class("visionattn.Toy")


def test_a_job_without_types(package):
    openmmlab.add_job(package("package_without_types", None))
    assert find_class("visionattn.Backbone") is openmmlab.Backbone


def test_a_job_that_cannot_be_imported_is_named_at_every_look_up(package):
    openmmlab.add_job(package("broken_package", "import a_package_that_does_not_exist\n"))
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"broken_package\.mmlab: cannot be imported.*a_package_that_does_not_exist"
        ):
            find_class("visionattn.Backbone")


def test_a_missing_package():
    with pytest.raises(ConfigError, match="`package` must be an importable package, got 'no_such_job'"):
        openmmlab.add_job("no_such_job")
