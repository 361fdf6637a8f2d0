"""`import visionattn` in a fresh process: what it brings in, and what it leaves out."""

import subprocess
import sys

OPTIONAL = (
    "mmengine",
    "mmcv",
    "mmdet",
    "mmseg",
    "cv2",
    "albumentations",
    "sklearn",
    "matplotlib",
    "rich",
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
