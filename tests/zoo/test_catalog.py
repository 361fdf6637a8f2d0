"""The table of published models, and their use by name."""

import dataclasses
import json
import os
import re
from collections import Counter

import numpy as np
import pytest
import torch
from fixtures.server import Server, file_answer

pytest.importorskip("mmdet")

from mmengine.registry import MODELS, DefaultScope

from visionattn.cli import main
from visionattn.engine.config.build import building, drop_initialisation, quiet
from visionattn.engine.config.load import find_config, load_config
from visionattn.errors import CheckpointError, ConfigError
from visionattn.inference import Predictor
from visionattn.io.weights import read
from visionattn.zoo import catalog, find_model, known_names, model_names, records, resolve
from visionattn.zoo.backbones import published_backbones
from visionattn.zoo.catalog import FAMILIES, published_models

MODELS_BY_NAME = published_models()
ONE_EACH = {(model.family, model.name.split("_")[0]): model for model in MODELS_BY_NAME.values() if model.config}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/models"


def test_table():
    names = known_names()
    assert len(names) == len(set(names))
    assert len(MODELS_BY_NAME) == 64
    methods = Counter((model.family, model.name.split("_")[0]) for model in MODELS_BY_NAME.values())
    assert sum(n for (family, method), n in methods.items() if family in ("nat", "dinat")) == 21 + 13 + 8
    assert sum(n for (family, method), n in methods.items() if family == "davit") == 15
    assert not set(names) & set(published_backbones())
    urls = [url for model in MODELS_BY_NAME.values() for url in model.urls]
    assert len(urls) == len(set(urls))
    for model in MODELS_BY_NAME.values():
        assert re.fullmatch(r"[a-z0-9-]+(_[a-z0-9-]+)+", model.name)
        assert not find_config(model.name).is_file(), "a config and a model of one name would be confused"
        assert model.urls
        assert all(url.startswith("https://") for url in model.urls)
        assert bool(model.unusable) == (model.config is None) == (model.parameters is None)
        assert all(0 < value <= 100 for value in model.scores.values())
    assert {model.family for model in MODELS_BY_NAME.values()} == set(FAMILIES)


@pytest.mark.parametrize("model", [model for model in MODELS_BY_NAME.values() if model.config], ids=lambda m: m.name)
def test_configs_exist(model):
    path = find_config(model.config)
    assert path.is_file()
    backbone = model.name.split("_")[1]
    if backbone.startswith(("nat", "dinat", "davit", "deit")):
        assert f"_{backbone}_" in model.config
    assert model.config.startswith(model.name.split("_")[0])


@pytest.mark.parametrize("model", ONE_EACH.values(), ids=lambda model: model.name)
def test_parameters(model):
    config = load_config(model.config, resolve_data=False)
    drop_initialisation(config["model"])
    scope = DefaultScope.overwrite_default_scope(config.get("default_scope", "mmengine"))
    with quiet(), building(model.config), torch.device("meta"), scope:
        built = MODELS.build(config["model"])
    assert sum(parameter.numel() for parameter in built.parameters()) == model.parameters


def test_scores_are_those_of_the_configs():
    """The index of the configs states the same published scores."""
    from fixtures.paths import REPO

    rows = re.findall(
        r"^\| \[([\w-]+)\].*? \| (\S+[^|]*?) \| \S+ \| [^|]*\|$", (REPO / "configs/README.md").read_text(), re.M
    )
    index, compared = dict(rows), 0
    for model in MODELS_BY_NAME.values():
        scores = [
            value for metric, value in model.scores.items() if "multi-scale" not in metric or len(model.scores) == 1
        ]
        if model.config and scores:
            found = [float(number) for number in index[model.config].removesuffix(" multi-scale").split("/")]
            assert found == scores, model.name
            compared += 1
    assert compared == 60


# --- use by name -----------------------------------------------------------------------------------------------


@pytest.fixture
def small(server: Server, tmp_path, monkeypatch) -> catalog.PublishedModel:
    """A published model that is the small one of the package, on a local server."""
    shipped = find_model("digits")
    torch.save(read(shipped.weights), tmp_path / "digits.pth")
    url = server.url("/d.pth", file_answer((tmp_path / "digits.pth").read_bytes()))
    model = catalog.PublishedModel(
        "atss_small", "dinat", "detection", "digits", {}, 1, shipped.config.removesuffix(".py"), (url,)
    )
    monkeypatch.setitem(published_models(), "atss_small", model)
    return model


def _image(tmp_path) -> str:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((96, 128, 3), 90, np.uint8))
    return str(tmp_path / "a.png")


def test_resolve(server: Server, small, folder, tmp_path):
    config, file = resolve("atss_small")
    assert (config, file) == (small.config, folder / "atss_small.pth")
    assert load_config(config, resolve_data=False).model.type == "ATSS"
    assert resolve("atss_small", tmp_path / "digits.pth") == (small.config, tmp_path / "digits.pth")
    assert resolve("digits") == (find_model("digits").config, find_model("digits").weights)
    assert resolve("digits", str(tmp_path / "digits.pth"))[1] == tmp_path / "digits.pth"
    server.stop()
    assert resolve("atss_small")[1] == file


@pytest.fixture
def unusable(monkeypatch) -> str:
    """The name of a published model that the package cannot build."""
    model = catalog.PublishedModel(
        "some_model_coco",
        "dinat",
        "detection",
        "COCO",
        {},
        None,
        None,
        ("https://host/a",),
        unusable="its head is absent",
    )
    monkeypatch.setitem(published_models(), model.name, model)
    return model.name


def test_errors_of_resolve(tmp_path, folder, small, monkeypatch, unusable):
    for name, message in (
        ("mask-rcnn_dinat-mini_3x_coc", "did you mean mask-rcnn_dinat-mini_3x_coco"),
        ("zzzz", "`visionattn models` lists"),
        (unusable, "cannot be used, since its head is absent"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve(name)
    page = MODELS_BY_NAME["upernet_davit-tiny_ade20k"]
    with pytest.raises(CheckpointError, match=f"open {re.escape(page.urls[0])} in a browser.*{folder}/{page.file}"):
        resolve(page.name)
    with pytest.raises(CheckpointError, match=r"`weights` .*none\.pth: the file does not exist"):
        resolve("digits", tmp_path / "none.pth")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(CheckpointError, match="web page"):
        resolve("digits", tmp_path / "page.pth")
    monkeypatch.setitem(published_models(), "atss_small", dataclasses.replace(small, sha256="0" * 64))
    with pytest.warns(UserWarning, match="is not the published file of atss_small"):
        resolve("atss_small", tmp_path / "digits.pth")


def test_a_file_saved_by_hand(small, folder, tmp_path, monkeypatch):
    page = dataclasses.replace(small, urls=("https://drive.google.com/open?id=1",))
    monkeypatch.setitem(published_models(), "atss_small", page)
    folder.mkdir(parents=True)
    os.link(tmp_path / "digits.pth", folder / "atss_small.pth")
    assert resolve("atss_small") == (page.config, folder / "atss_small.pth")


def test_a_file_with_other_objects_is_converted(server: Server, small, folder, tmp_path):
    """As mmcv wrote them: with NumPy scalars in the metadata."""
    pytest.importorskip("visionattn.io.convert")
    loaded = read(tmp_path / "digits.pth")
    torch.save({**loaded, "meta": {**loaded["meta"], "lr": np.float64(0.1)}}, tmp_path / "old.pth")
    server.url("/d.pth", file_answer((tmp_path / "old.pth").read_bytes()))
    config, file = resolve("atss_small")
    assert file == folder / "atss_small.safetensors"
    assert set(read(file)["state_dict"]) == set(loaded["state_dict"])
    before = file.stat().st_mtime_ns
    assert resolve("atss_small") == (config, file)
    assert file.stat().st_mtime_ns == before, "converted once"


def test_a_converted_copy_is_that_of_the_file(server: Server, small, folder, tmp_path):
    """Also if the file is replaced by an older one, or the copy is damaged without a change of its time."""
    loaded, first = read(tmp_path / "digits.pth"), {}

    def save(value: float) -> None:
        name = next(n for n, x in loaded["state_dict"].items() if x.is_floating_point())
        first["name"], state = name, {**loaded["state_dict"]}
        state[name] = torch.full_like(state[name], value)
        torch.save({"state_dict": state, "meta": {"lr": np.float64(0.1)}}, folder / "atss_small.pth")

    def found() -> float:
        return float(read(resolve("atss_small")[1])["state_dict"][first["name"]].flatten()[0])

    folder.mkdir(parents=True)
    save(1)
    assert found() == 1
    copy, source = folder / "atss_small.safetensors", folder / "atss_small.pth"
    save(2)
    os.utime(source, (1e9, 1e9))
    (folder / "atss_small.pth.json").unlink()
    assert found() == 2
    before, content = copy.stat(), bytearray(copy.read_bytes())
    content[-5] ^= 0xFF
    copy.write_bytes(content)
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert resolve("atss_small")[1] == copy
    assert copy.read_bytes() != content


def test_infer_and_predictor(small, tmp_path, capsys):
    arguments = ["infer", _image(tmp_path), "--out", str(tmp_path / "out"), "--model", "atss_small"]
    assert main(arguments) == 0
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["categories"]) == 10
    assert main([*arguments, "--weights", str(tmp_path / "none.pth")]) == 1
    assert "error: --weights" in capsys.readouterr().err
    assert main([*arguments, "--config", "x.py"]) == 1
    assert "--model includes a config; remove --config" in capsys.readouterr().err
    assert len(Predictor.from_pretrained("atss_small", "cpu", weights=tmp_path / "digits.pth").classes) == 10


def test_export_and_attention(small, tmp_path, capsys):
    size = ["--size", "64", "--out", str(tmp_path / "a.pt2")]
    assert main(["export", "--model", "atss_small", *size]) == 0
    assert (tmp_path / "a.pt2").is_file()
    assert main(["export", "resnet10t", "--run", "x"]) == 1
    out = ["--out", str(tmp_path / "maps"), "--layers", "0", "--size", "64"]
    assert main(["attention", _image(tmp_path), "--model", "atss_small", *out]) == 0
    assert (tmp_path / "maps/index.html").is_file()


def test_test(small, tmp_path, monkeypatch, capsys):
    from visionattn.data.digits import build_digit_scenes

    data = build_digit_scenes(tmp_path / "samples", train=2, test=2, size=128)
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--model", "atss_small", "--cfg-options", f"custom_data.root={data}"]) == 0
    assert (tmp_path / "outputs/test/atss_small").is_dir()
    assert "on 2 images" in capsys.readouterr().out
    for arguments, message in (
        ([], "exactly one of CONFIG and --model is required"),
        (["x.py", "--model", "digits"], "exactly one of CONFIG and --model is required"),
        (["x.py", "--weights", "x.pth"], "--weights requires --model"),
    ):
        assert main(["test", *arguments]) == 1
        assert message in capsys.readouterr().err


# --- visionattn models -----------------------------------------------------------------------------------------


def test_list(capsys, folder):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    places = [text.index(name) for name in [*model_names(), "mask-rcnn_nat-mini_3x_coco"]]
    assert places == sorted(places)
    for name, model in MODELS_BY_NAME.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert all(str(value) in line for value in model.scores.values())
        assert model.note in line
    assert str(folder) in text
    assert "biformer_tiny" not in text
    assert "…" not in text, "nothing is cut off without a terminal"


def test_filters(capsys):
    def names(*arguments: str) -> list[str]:
        assert main(["models", "--json", *arguments]) == 0
        return [record["name"] for record in json.loads(capsys.readouterr().out)]

    assert names("*dinat-mini*") == [name for name in known_names() if "dinat-mini" in name]
    assert names("DINAT-mini_ade") == ["upernet_dinat-mini_ade20k"]
    assert names("--job", "panoptic") == [name for name in MODELS_BY_NAME if name.endswith("panoptic")]
    assert names("biformer") == sorted(name for name in published_backbones() if "biformer" in name)
    assert names("--job", "detection", "--all", "digits") == ["digits"]
    assert set(names("--all")) == {*known_names(), *published_backbones()}
    assert names("nuclei") == ["nuclei"]
    for arguments, message in (
        (["zzz"], "no model has a name like 'zzz'"),
        (["--job", "poetry"], "no such model has the --job 'poetry'; jobs: classification, detection"),
    ):
        assert main(["models", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_details(small, capsys, folder, unusable):
    assert main(["models", "atss_small"]) == 0
    text = capsys.readouterr().out
    assert f"{folder / 'atss_small.pth'} (not downloaded)" in text
    resolve("atss_small")
    assert main(["models", "atss_small"]) == 0
    assert "(downloaded, SHA-256 " in capsys.readouterr().out
    assert main(["models", "upernet_davit-base_ade20k"]) == 0
    text = capsys.readouterr().out
    for part in (
        "121,465,900",
        "mIoU 49.4 (published, not measured here)",
        "(license: MIT)",
        "--weights FILE",
        "browser",
    ):
        assert part in text
    assert main(["models", unusable]) == 0
    assert "visionattn infer" not in capsys.readouterr().out
    assert main(["models", "biformer_tiny.in1k"]) == 0
    text = capsys.readouterr().out
    assert "address reported dead in 2026" in text
    assert "13,142,760" in text


def test_every_model_has_a_job_and_licenses():
    for record in [*records.shipped(), *records.published(), *records.backbones()]:
        assert record.job
        assert record.weights_license
        assert record.parameters or record.kind == "backbone" or not record.usable
        assert record.kind == "package" or (record.code_license and record.urls and record.repository)


def test_check_links(server: Server, small, monkeypatch, capsys):
    monkeypatch.setattr(records, "published", lambda: [records._published(model) for model in (small, gone)])
    monkeypatch.setattr(records, "backbones", list)
    gone = dataclasses.replace(small, name="atss_gone", urls=(server.url("/g", lambda h: h.send_error(404)),))
    assert main(["models", "--check-links"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"atss_small +ok +[\d,]+ bytes +http", text)
    assert re.search(r"atss_gone +dead +the server returned 404", text)
    assert "1 of 2 addresses do not work" in text
    monkeypatch.setattr("visionattn.io.links._HOSTS", {"127.0.0.1": "address reported dead in 2026"})
    monkeypatch.setattr("visionattn.io.links.reported_dead", lambda url: url.endswith("/g"))
    assert main(["models", "--check-links"]) == 0
    assert re.search(r"atss_gone +dead, as reported", capsys.readouterr().out)
