"""`import visionattn` in a fresh process: what it brings in, and what it leaves out."""

import subprocess
import sys

import pytest

OPTIONAL = (
    "mmengine",
    "mmcv",
    "mmdet",
    "mmseg",
    "cv2",
    "albumentations",
    "sklearn",
    "matplotlib",
    "pycocotools",
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_registers_the_backbones_and_nothing_optional():
    added = run(
        "import sys, torch, timm; before = set(sys.modules); import visionattn; "
        "print(*(set(sys.modules) - before)); assert 'dinat_mini' in timm.list_models('dinat_*')"
    )
    roots = {name.split(".")[0] for name in added.split()}
    assert not roots & set(OPTIONAL), roots & set(OPTIONAL)


def test_import_alone_imports_neither_torch_nor_timm():
    run("import sys, visionattn; assert not {'torch', 'timm', 'numpy'} & set(sys.modules)")


@pytest.mark.parametrize(
    "order",
    [
        "import visionattn, timm",
        "import timm, visionattn",
        "import visionattn, torch, timm.models",
        "from visionattn.layers import ULSAM; import timm",
        "import visionattn, importlib.util as u; u.find_spec('torch'); u.find_spec('timm'); import timm",
    ],
)
def test_operators_and_backbones_are_registered_in_every_order(order):
    run(
        f"{order}; import torch; assert 'dinat_mini' in timm.list_models('dinat_*')\n"
        "assert torch.ops.visionattn.routing_attention is not None\n"
        "import visionattn; assert visionattn.kernels.na2d and visionattn.backbones.load_official\n"
        "assert type(timm.__loader__).__name__ == type(timm.__spec__.loader).__name__ == 'SourceFileLoader'"
    )


def test_a_failed_import_can_be_repeated():
    run(
        "import sys, visionattn; sys.modules['torchvision'] = None\n"
        "try:\n    import timm\nexcept ImportError: pass\nelse: raise AssertionError\n"
        "del sys.modules['torchvision']; import timm; assert 'dinat_mini' in timm.list_models('dinat_*')"
    )


def test_import_works_without_the_optional_packages():
    block = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))"
    run(f"{block}; import visionattn, timm; timm.create_model('dinat_pico', num_classes=2)")


def test_missing_package_is_named_with_its_command():
    code = (
        "import sys; sys.modules['mmengine'] = None\n"
        "from visionattn.cli import main; sys.exit(main(['train', 'config.py']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "pip install 'visionattn[openmmlab]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_kernels_work_without_triton():
    run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from visionattn.kernels import backends, na1d\n"
        "first = backends.explain('na1d')[0]; assert first.backend == 'triton' and 'not installed' in first.reason\n"
        "x = torch.zeros(1, 9, 1, 4); assert na1d(x, x, x, 3).shape == x.shape"
    )
