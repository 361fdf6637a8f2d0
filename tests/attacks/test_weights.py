"""Weights files that lie: sizes and offsets, compressed parts, tensors without memory of their own, dumps of a run."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

pytest.importorskip("mmdet")

from mmengine.registry import MODELS, DefaultScope

from visionattn.backbones import load_official
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.compat import install
from visionattn.engine.config.load import load_config
from visionattn.engine.model import config_for
from visionattn.engine.train.replay import FORMAT, KIND, decode, replay
from visionattn.engine.weights import fit
from visionattn.errors import CheckpointError
from visionattn.heads.forgery.nfa_vit import NFAViT
from visionattn.inference.export import timm_network
from visionattn.io import cache

install()
SIZES = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "num_classes": 3}


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


# --- zip files of PyTorch --------------------------------------------------------------------------------------------


def repacked(path: Path, change: Callable[[str, bytes], bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", kind) as target:
        for name, data in parts.items():
            target.writestr(name, change(name, data))
    return path


def compressed_bomb(path: Path) -> Path:
    save(path, {"w": torch.zeros(50_000_000)})
    return repacked(path, lambda name, data: data, zipfile.ZIP_DEFLATED)


def lzma_bomb(path: Path) -> Path:
    save(path, {"w": torch.zeros(5_000_000)})
    return repacked(path, lambda name, data: data, zipfile.ZIP_LZMA)


def storage_larger_than_its_record(path: Path) -> Path:
    """The pickle says 2^40 numbers, the record holds 4."""
    save(path, {"w": torch.zeros(4)})

    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"K\x04t", b"\x8a\x06\x00\x00\x00\x00\x00\x01t") if name.endswith("data.pkl") else data

    return repacked(path, change)


def size_beyond_storage(path: Path) -> Path:
    save(path, {"w": torch.zeros(4)})

    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85") if name.endswith("data.pkl") else data

    return repacked(path, change)


def negative_size(path: Path) -> Path:
    save(path, {"w": torch.zeros(4)})
    return repacked(path, lambda n, d: d.replace(b"K\x04\x85", b"J\xff\xff\xff\xff\x85") if "data.pkl" in n else d)


def expanded_view(path: Path) -> Path:
    """2^40 numbers that are all the same one."""
    return save(path, {"w": torch.zeros(1).expand(1 << 20, 1 << 20)})


def expanded_in_a_list(path: Path) -> Path:
    return save(path, {"meta": [{"deep": (torch.zeros(1).expand(1 << 40),)}]})


def sparse_tensor(path: Path) -> Path:
    return save(path, {"w": torch.sparse_coo_tensor([[0], [0]], [1.0], (1 << 30, 1 << 30))})


def meta_tensor(path: Path) -> Path:
    return save(path, {"w": torch.empty(1 << 40, device="meta")})


def wrong_offset(path: Path) -> Path:
    """The central directory points into the middle of another record."""
    save(path, {"w": torch.zeros(64)})
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x01\x02")
    data[place + 42 : place + 46] = struct.pack("<I", 7)
    path.write_bytes(data)
    return path


def lying_record_size(path: Path) -> Path:
    save(path, {"w": torch.zeros(64)})
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x01\x02")
    data[place + 20 : place + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(data)
    return path


def twice_the_same_record(path: Path) -> Path:
    save(path, {"w": torch.zeros(64)})
    with zipfile.ZipFile(path) as source:
        name = next(n for n in source.namelist() if n.endswith("data.pkl"))
    with zipfile.ZipFile(path, "a") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr(name, b"not a pickle")
    return path


def not_a_zip_inside(path: Path) -> Path:
    path.write_bytes(b"PK\x03\x04" + bytes(100) + b"PK\x05\x06" + bytes(18))
    return path


def missing_record(path: Path) -> Path:
    save(path, {"w": torch.zeros(64)})
    with zipfile.ZipFile(path) as source:
        parts = {n: source.read(n) for n in source.namelist() if "/data/" not in n}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in parts.items():
            target.writestr(name, data)
    return path


def a_tensor_alone(path: Path) -> Path:
    return save(path, torch.zeros(3))


# --- safetensors -----------------------------------------------------------------------------------------------------


def safe(path: Path, header: dict | bytes, body: bytes = bytes(64), size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + body)
    return path


def entry(start: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFE: dict[str, Callable[[Path], Path]] = {
    "overlapping": lambda p: safe(p, {"a": entry(0, 64, [16]), "b": entry(32, 64, [8])}),
    "same_twice": lambda p: safe(p, {"a": entry(0, 64, [16]), "b": entry(0, 64, [16])}),
    "beyond_the_end": lambda p: safe(p, {"a": entry(0, 4096, [1024])}),
    "backwards": lambda p: safe(p, {"a": entry(64, 0, [16])}),
    "negative": lambda p: safe(p, {"a": entry(-64, 0, [16])}),
    "hole": lambda p: safe(p, {"a": entry(0, 16, [4]), "b": entry(32, 64, [8])}),
    "shape_and_bytes_differ": lambda p: safe(p, {"a": entry(0, 64, [1 << 40])}),
    "shape_overflows": lambda p: safe(p, {"a": entry(0, 64, [1 << 62, 1 << 62, 16])}),
    "negative_shape": lambda p: safe(p, {"a": entry(0, 64, [-4, -4])}),
    "unknown_type": lambda p: safe(p, {"a": entry(0, 64, [16], "OBJECT")}),
    "header_of_2_63": lambda p: safe(p, {"a": entry(0, 64, [16])}, size=1 << 63),
    "header_of_1_gb": lambda p: safe(p, {"a": entry(0, 64, [16])}, size=1 << 30),
    "header_of_spaces": lambda p: safe(p, b" " * 120_000_000),
    "deep_header": lambda p: safe(p, b"[" * 100_000),
    "no_json": lambda p: safe(p, b"\x80\x02cos\nmkdir\n."),
    "empty": lambda p: safe(p, b"", b"", 0),
}


def safetensors(path: Path, name: str) -> Path:
    return SAFE[name](path.with_suffix(".safetensors"))


ZIPS = {
    f.__name__: f
    for f in (
        compressed_bomb, lzma_bomb, storage_larger_than_its_record, size_beyond_storage, negative_size, expanded_view,
        expanded_in_a_list, sparse_tensor, meta_tensor, wrong_offset, lying_record_size, twice_the_same_record,
        not_a_zip_inside, missing_record, a_tensor_alone,
    )
}  # fmt: skip


def _config(path: Path) -> Any:
    config = path.with_suffix(".py")
    config.write_text("model = dict(type='x')\ncustom_data = dict(root='', train_ann='', classes='auto')\n")
    return config_for(config, path)


LOADERS: dict[str, Callable[[Path], Any]] = {
    "read": checkpoints.read,
    "load_from_http": lambda path: checkpoints.load_from_http(path.as_uri(), model_dir=str(path.parent / "cache")),
    "replay": lambda path: replay(path, None),
    "config_for": _config,
    "export": lambda path: timm_network("dinat_pico", path),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("attack", [*ZIPS, *(f"safetensors_{name}" for name in SAFE)])
def test_lies(attack, loader, row, tmp_path, refused):
    made: list[Path] = []

    def prepare(load: Callable[[Path], Any]) -> Callable[[Path, Path], Callable[[], Any]]:
        def call(folder: Path, trace: Path) -> Callable[[], Any]:
            if not made and attack.startswith("safetensors_"):
                made.append(safetensors(tmp_path / "model.pth", attack.removeprefix("safetensors_")))
            elif not made:
                made.append(ZIPS[attack](tmp_path / "model.pth"))
            os.link(made[0], folder / made[0].name)
            return lambda: load(folder / made[0].name)

        return call

    found = row(attack, loader, {name: prepare(load) for name, load in LOADERS.items()})
    suffix = "safetensors" if attack.startswith("safetensors_") else "pth"
    assert f"model.{suffix}" in refused(found, 500 if attack == "safetensors_header_of_spaces" else 300)


# --- what is in them -------------------------------------------------------------------------------------------------

META: dict[str, Any] = {
    "meta_is_text": {"meta": "x"},
    "dataset_meta_is_a_list": {"meta": {"dataset_meta": [1]}},
    "classes_are_a_number": {"meta": {"dataset_meta": {"classes": 5}}},
    "names_are_numbers": {"state_dict": {1: torch.zeros(2), (2,): torch.zeros(3)}},
    "weights_are_text": {"state_dict": {"weight": "x", "bias": None}},
    "weights_are_nested": {"state_dict": {"state_dict": {"model": {"weight": torch.zeros(1)}}}},
    "history_is_none": {"message_hub": {"log_scalars": {"loss": {"values": 1, "counts": None}}}},
    "scalars_are_a_list": {"message_hub": {"log_scalars": [1, 2]}},
    "wrong_types": {"state_dict": {"weight": torch.zeros(1, 1, dtype=torch.complex64), "bias": torch.zeros(1)}},
    "not_a_number": {"state_dict": {"weight": torch.full((1, 1), float("nan")), "bias": torch.zeros(1)}},
    "config_that_would_run": {"meta": {"cfg": "import os\nos.mkdir({trace!r})\nmodel = dict(type='x')\n"}},
    "config_by_name": {"meta": {"cfg": {"custom_imports": {"imports": ["antigravity"]}}, "config_name": "../x.py"}},
}


def _fit(path: Path) -> Any:
    model = nn.Linear(1, 1)
    return fit(model, checkpoints.load_from_local(str(path)), path)


INSIDE: dict[str, Callable[[Path], Any]] = {
    "fit": _fit,
    "load_from_local": lambda path: checkpoints.load_from_local(str(path)),
    "load_official": lambda path: load_official(timm.create_model("dinat_pico", **SIZES), checkpoints.read(path)),
    "export": LOADERS["export"],
}


@pytest.mark.parametrize("loader", INSIDE)
@pytest.mark.parametrize("attack", META)
def test_metadata(attack, loader, tmp_path, trace, harmless):
    content = META[attack]
    if attack == "config_that_would_run":
        content = {"meta": {"cfg": content["meta"]["cfg"].format(trace=str(trace))}}
    path = save(tmp_path / "model.pth", content)
    found = harmless(lambda: INSIDE[loader](path))
    if loader in ("load_official", "export"):
        assert found.error == "CheckpointError", found


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "dinat": lambda: timm.create_model("dinat_pico", **SIZES),
    "biformer": lambda: timm.create_model("biformer_tiny", embed_dim=(32, 32, 32, 32), depths=(1, 1, 1, 1)),
    "davit": lambda: timm.create_model(
        "davit_tiny", embed_dims=(32, 32, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
    ),
    "timesformer": lambda: timm.create_model(next(iter(timm.list_models("timesformer*"))), depth=1),
    "nfa_vit": NFAViT,
}


@lru_cache
def network(family: str) -> nn.Module:
    return FAMILIES[family]()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attack", ["scalars", "vectors", "huge_numbers", "expanded", "sparse", "empty", "many_axes"])
def test_load_official(family, attack, harmless):
    """Names of the family with tensors of shapes that no model has."""
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "scalars": lambda t: torch.zeros(()),
        "vectors": lambda t: torch.zeros(3),
        "expanded": lambda t: torch.zeros(1).expand(*t.shape[:-1], 1 << 33) if t.ndim else t,
        "sparse": lambda t: torch.sparse_coo_tensor(torch.zeros(t.ndim, 1, dtype=torch.long), [1.0], t.shape),
        "empty": lambda t: torch.zeros(0, 0),
        "many_axes": lambda t: torch.zeros((1,) * 20),
    }

    def call() -> Any:
        model = network(family)
        weights = model.state_dict()
        if attack == "huge_numbers":
            given = {n.replace(".0.", f".{'9' * 5000}.", 1): t for n, t in weights.items()}
        else:
            given = {name: changes[attack](t) for name, t in weights.items()}
        return load_official(model, given)

    network(family)  # made once, and each child has a copy
    found = harmless(call)
    assert found.error == "CheckpointError", found


@pytest.mark.parametrize("attack", ["deep_names", "scalars", "expanded", "huge_numbers", "nothing"])
def test_nfa_vit_from_official(attack, harmless):
    """The size of the model is read off the checkpoint, so that the checkpoint could ask for any."""
    weights = dict(network("nfa_vit").state_dict())
    if attack == "deep_names":
        weights["image_backbone.block1.500000.norm1.weight"] = torch.zeros(1)
    elif attack == "huge_numbers":
        weights[f"image_backbone.block1.{'9' * 5000}.norm1.weight"] = torch.zeros(1)
    elif attack == "expanded":
        weights["seg_decoder.conv_last.weight"] = torch.zeros(1).expand(1, 1 << 30, 1, 1)
    else:
        weights = {n: torch.zeros(()) for n in weights} if attack == "scalars" else {}
    found = harmless(lambda: NFAViT.from_official(weights))
    assert found.error == "CheckpointError", found


# --- dumps -----------------------------------------------------------------------------------------------------------

BATCHES: dict[str, Any] = {
    "unknown_kind": {KIND: "Popen", "args": ["mkdir"]},
    "kind_is_a_list": {KIND: ["DetDataSample"]},
    "no_tensor": {KIND: "ndarray"},
    "tensor_is_text": {KIND: "ndarray", "tensor": "x"},
    "no_data": {KIND: "InstanceData", "meta": {}},
    "data_is_a_list": {KIND: "InstanceData", "meta": {}, "data": [1]},
    "method_as_field": {KIND: "InstanceData", "meta": {}, "data": {"to": 1}},
    "private_field": {KIND: "InstanceData", "meta": {}, "data": {"_metainfo_fields": 1}},
    "class_as_field": {KIND: "InstanceData", "meta": {}, "data": {"__class__": 1}},
    "name_is_a_number": {KIND: "InstanceData", "meta": {}, "data": {5: 1}},
    "masks_of_another_size": {KIND: "BitmapMasks", "masks": [1, 2], "height": 1 << 40, "width": -1},
    "polygons_are_text": {KIND: "PolygonMasks", "masks": "x", "height": 3, "width": 3},
    "boxes_are_text": {KIND: "HorizontalBoxes", "tensor": "x"},
    "fields_differ_in_length": {
        KIND: "InstanceData", "meta": {}, "data": {"a": torch.zeros(2), "b": torch.zeros(3)},
    },
}  # fmt: skip


@pytest.mark.parametrize("attack", BATCHES)
def test_batches_of_a_dump(attack, refused):
    refused(lambda: decode({"inputs": [BATCHES[attack]]}))


DUMPS: dict[str, dict[str, Any]] = {
    "no_seed": {"iteration": 1, "rank": 0},
    "seed_is_text": {"seed": "x", "iteration": 1, "rank": 0},
    "seed_is_huge": {"seed": 1 << 80, "iteration": 1, "rank": 0},
    "seed_is_nan": {"seed": float("nan"), "iteration": float("inf"), "rank": 0},
    "iteration_is_negative": {"seed": 0, "iteration": -5, "rank": 0},
    "no_batch": {"seed": 0, "iteration": 1, "rank": 0, "batch": None},
    "batch_is_a_number": {"seed": 0, "iteration": 1, "rank": 0, "batch": 5, "autocast": "torch.load"},
    "batch_of_others": {"seed": 0, "iteration": 1, "rank": 0, "batch": {"inputs": "x"}, "autocast": "hub"},
}


CONFIG = """
default_scope = 'mmseg'
model = dict(type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32)),
    backbone=dict(type='visionattn.Backbone', model_name='dinat_pico', embed_dim=16, depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1)),
    decode_head=dict(type='FCNHead', in_channels=128, channels=8, num_convs=1, num_classes=2, in_index=3,
        norm_cfg=dict(type='BN')), train_cfg=dict(), test_cfg=dict(mode='whole'))
"""


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory) -> tuple[Any, dict[str, torch.Tensor]]:
    """A config and the weights of its model."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    config = load_config(path)
    with DefaultScope.overwrite_default_scope("mmseg"):
        return config, MODELS.build(config["model"]).state_dict()


@pytest.mark.parametrize("attack", DUMPS)
def test_dumps(attack, tmp_path, segmentor, refused):
    config, weights = segmentor
    path = save(tmp_path / "dump.pth", {"format": FORMAT, "state_dict": weights, **DUMPS[attack]})
    assert "dump" in refused(lambda: replay(path, config))


def test_a_download_does_not_leave_its_folder(tmp_path, monkeypatch):
    """An address whose last part is a way out."""
    asked: list[str] = []
    monkeypatch.setattr(cache, "download", lambda url, target, **options: asked.append(target) or 1 / 0)
    for end in ("..", "a/..", "%2e%2e", "x/../../y.pth"):
        with pytest.raises((CheckpointError, ZeroDivisionError)):
            checkpoints.load_from_http(f"https://host/{end}", model_dir=str(tmp_path / "cache"))
    assert len(asked) == 4
    assert {Path(target).resolve().parent for target in asked} == {(tmp_path / "cache").resolve()}
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["cache"])
