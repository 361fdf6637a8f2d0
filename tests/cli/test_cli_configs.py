"""`visionattn configs`: the list, and copies that the printed commands can use."""

import json
import shlex
from pathlib import Path

import pytest

pytest.importorskip("mmdet")

from visionattn.cli import main
from visionattn.engine.config.load import load_config
from visionattn.errors import ConfigError


def printed(capsys, *arguments: str) -> str:
    assert main(["configs", *arguments]) == 0
    return capsys.readouterr().out


def test_list(capsys):
    lines = printed(capsys).splitlines()
    heading = lines.index("segmentation:")
    assert lines.index("detection:") < heading
    (line,) = [n for n, text in enumerate(lines) if text.split()[:1] == ["upernet_nat-mini_8xb2-160k_ade20k-512x512"]]
    assert line > heading
    assert lines[line].endswith("UPerHead, nat_mini.in1k, ADE20K; published: 45.1")
    (line,) = [text for text in lines if text.split()[:1] == ["semantic-fpn_dinat-nano_camvid"]]
    assert line.endswith("FPNHead, dinat_nano, CamVid; mIoU 61.7")


def test_json(capsys):
    (entry,) = json.loads(printed(capsys, "atss_dinat-pico_fpn_coco_custom", "--json"))
    assert Path(entry.pop("path")).is_file()
    assert entry == {
        "name": "atss_dinat-pico_fpn_coco_custom", "job": "detection", "model": "ATSS", "backbone": "dinat_pico",
        "data": "your own data", "published": None, "ours": None,
        "options": ["custom_data.root=FOLDER", "custom_data.train_ann=FILE.json", "custom_data.val_ann=FILE.json"],
    }  # fmt: skip


def test_the_printed_command_reads_the_copy(tmp_path, monkeypatch, capsys, shapes_dir):
    monkeypatch.chdir(tmp_path)
    last = printed(capsys, "mask-rcnn_dinat-pico_fpn_coco_custom", "--copy", "my cells.py").splitlines()[-1]
    values = {"FOLDER": str(shapes_dir), "custom_data.train_ann=FILE": "custom_data.train_ann=train",
              "custom_data.val_ann=FILE": "custom_data.val_ann=val"}  # fmt: skip
    for word, value in values.items():
        last = last.replace(word, value)
    program, command, file, flag, *options = shlex.split(last.removeprefix("edit it, then: "))
    assert (program, command, file, flag) == ("visionattn", "train", "my cells.py", "--cfg-options")
    config = load_config(file, options)
    assert config.train_dataloader.dataset.metainfo.classes == ("red", "blue")
    assert main(["check", file, "--model-only", flag, *options]) == 0


def same(first, second) -> bool:
    return first.to_dict() == second.to_dict()


def test_copies_are_equal_and_take_options_of_variables(tmp_path):
    for name, option in (
        ("atss_dinat-pico_fpn_digits", "max_iters=7"),
        ("semantic-fpn_dinat-pico_camvid", "scale=64,48"),
    ):
        assert main(["configs", name, "--copy", str(tmp_path)]) == 0
        copy = tmp_path / f"{name}.py"
        assert same(load_config(copy, resolve_data=False), load_config(name, resolve_data=False))
        changed = load_config(copy, [option], resolve_data=False)
        assert same(changed, load_config(name, [option], resolve_data=False))
        assert not same(changed, load_config(name, resolve_data=False))


def test_an_edited_copy_acts(tmp_path):
    copy = tmp_path / "mine.py"
    assert main(["configs", "atss_dinat-pico_fpn_digits", "--copy", str(copy)]) == 0
    copy.write_text(copy.read_text().replace("max_iters = 800", "max_iters = 300"))
    config = load_config(copy, resolve_data=False)
    assert config.train_cfg.max_iters == config.param_scheduler[1].end == 300
    copy.write_text('_base_ = "visionattn::atss_dinat-pico_fpn_digits"\nscale = (64, 64)\nmax_iters = 9\n')
    with pytest.raises(ConfigError, match="`max_iters` has no effect"):  # as for bases in files
        load_config(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('_base_ = "visionattn::_base_/default_runtme.py"', "default_runtme.py does not exist"),
        ('_base_ = "visionattn::atss_dinat-pico_fpn_digit"', "did you mean atss_dinat-pico_fpn_digits"),
        ('_base_ = "other::a/b.py"', "other"),
    ],
)
def test_bases_that_do_not_exist(tmp_path, text, message):
    (tmp_path / "x.py").write_text(f"{text}\nmodel = dict()\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_config(tmp_path / "x.py")
    assert "\n" not in str(error.value)


def test_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["--copy"], "--copy requires the name of a config; `visionattn configs` lists them"),
        (["atss", "--copy"], "atss: no config of the package has this name"),
        (["no-such-thing"], "no-such-thing: no config of the package"),
    ):
        assert main(["configs", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
