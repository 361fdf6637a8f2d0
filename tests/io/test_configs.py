"""The configs of the package by name: listed, found, and copied without the files that they inherit from."""

import ast
from pathlib import Path

import pytest

from visionattn.errors import ConfigError
from visionattn.io import configs as package
from visionattn.io.configs import PREFIX, config_folder, copy_config, find_config, get_config, list_configs

NAME = "atss_dinat-pico_fpn_coco_custom"


def test_the_index_lists_every_config():
    files = {path for path in config_folder().rglob("*.py") if "_base_" not in path.parts}
    assert len(files) > 100
    assert sorted(config.path for config in list_configs()) == sorted(files)
    assert {config.job for config in list_configs()} <= {
        path.name for path in (Path(package.__file__).parents[1] / "heads").iterdir()
    }


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (
            "semantic-fpn_*_camvid",
            ["semantic-fpn_dinat-nano_camvid", "semantic-fpn_dinat-pico_camvid", "semantic-fpn_resnet18_camvid"],
        ),
        ("SEMANTIC-fpn_resnet*", ["semantic-fpn_resnet18_camvid"]),
        ("waymo", ["scatterformer_1xb4-40e_kitti", "scatterformer_8xb4-24e_waymo"]),  # by the backbone too
        (f"{NAME}.py", [NAME]),
        ("forgery-net_dinat-pico_synthetic", ["forgery-net_dinat-pico_synthetic"]),  # the start of other names
    ],
)
def test_patterns(pattern, names):
    assert [config.name for config in list_configs(pattern)] == names


def test_errors_name_what_is_similar():
    with pytest.raises(ConfigError, match=f"atss_dinat-pico_coco_custom: no config .*; did you mean {NAME}"):
        get_config("atss_dinat-pico_coco_custom")
    with pytest.raises(ConfigError, match=r"qqqq: no config of the package .*`visionattn configs` lists them"):
        list_configs("qqqq")


def test_a_file_comes_before_the_package_unless_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{NAME}.py").write_text("model = dict()\n")
    assert find_config(f"{NAME}.py") == Path(f"{NAME}.py")
    inside = config_folder() / f"detection/atss/{NAME}.py"
    for path in (NAME, f"{PREFIX}{NAME}.py", f"{PREFIX}{NAME}", f"{PREFIX}detection/atss/{NAME}.py"):
        assert find_config(path) == inside
    assert not find_config(f"{PREFIX}detection/none.py").exists()


def test_copy_has_the_text_of_the_config(tmp_path):
    file = copy_config(NAME, tmp_path / "new")
    assert file == tmp_path / "new" / f"{NAME}.py"
    first, *lines = file.read_text().splitlines()
    assert first.startswith(f"# A copy of {NAME} of visionattn ")
    before = get_config(NAME).path.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, lines, strict=True) if old != new]
    assert [new.strip() for _, new in changed] == [
        f"#   visionattn train {NAME}.py --cfg-options custom_data.root=/data/cells",
        '"visionattn::_base_/models/atss_dinat-pico_fpn.py",',
        '"visionattn::_base_/schedules/adamw_iters.py",',
        '"visionattn::_base_/default_runtime.py",',
    ]


def test_copy_of_a_config_with_one_base_after_other_letters(tmp_path, monkeypatch):
    (tmp_path / "configs/a").mkdir(parents=True)
    (tmp_path / "configs/a/x.py").write_text('note = "Größe"; _base_ = "./y.py"  # ü\n', encoding="utf-8")
    (tmp_path / "configs/index.json").write_text(
        '[{"path": "a/x.py", "job": "a", "model": "", "backbone": "", "data": "", "published": null, "ours": null, '
        '"options": []}]'
    )
    monkeypatch.setattr(package, "config_folder", lambda: tmp_path / "configs")
    copy = copy_config("x", tmp_path / "mine.py").read_text(encoding="utf-8").splitlines()[1]
    assert copy == 'note = "Größe"; _base_ = "visionattn::a/y.py"  # ü'


def test_every_base_of_every_config_can_be_copied(tmp_path):
    for config in list_configs():
        tree = ast.parse(copy_config(config.name, tmp_path).read_text())
        values = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_base_"]
        bases = [node.value for value in values for node in ast.walk(value) if isinstance(node, ast.Constant)]
        assert all(base.startswith(PREFIX) and find_config(base).is_file() for base in bases), config.name


def test_nothing_is_overwritten(tmp_path):
    file = copy_config(NAME, tmp_path / "mine.py")
    file.write_text("mine")
    for target in (file, f"{file}"):
        with pytest.raises(ConfigError, match=r"mine\.py: exists and is not overwritten"):
            copy_config(NAME, target)
    assert file.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"mine\.txt: the copy of a config must be a folder or a file that ends in"):
        copy_config(NAME, tmp_path / "mine.txt")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/mine\.py: cannot be written"):
        copy_config(NAME, tmp_path / "file" / "mine.py")
