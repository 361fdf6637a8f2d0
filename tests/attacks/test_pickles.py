"""Pickles that run code when they are loaded, by every way that a pickle knows, in every file that may hold one."""

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

pytest.importorskip("mmdet")

from mmengine.runner import CheckpointLoader

import visionattn.openmmlab
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.compat import install
from visionattn.engine.model import config_for
from visionattn.engine.train.replay import replay
from visionattn.errors import CheckpointError, DataError
from visionattn.heads.action.keypoints import read_points as read_pose
from visionattn.heads.lidar.data.files import read_points
from visionattn.heads.lidar.data.infos import read_mmdet3d_infos
from visionattn.heads.lidar.data.object_database import ObjectDatabase
from visionattn.inference.export import timm_network
from visionattn.io.convert import convert_file, read_any
from visionattn.io.pickles import read_plain_pickle

install()

# --- pickles ---------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def call(module: str, name: str, *arguments: str) -> bytes:
    """The opcodes of a call by REDUCE."""
    words = b"".join(text(a) for a in arguments)
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + words + b"tR"


def whole(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def reduce(trace: str) -> bytes:
    return whole(call("os", "mkdir", trace))


def system(trace: str) -> bytes:
    return whole(call("posix", "system", f"mkdir {trace}"))


def evaluate(trace: str) -> bytes:
    return whole(call("builtins", "eval", f"__import__('os').mkdir({trace!r})"))


def old_names(trace: str) -> bytes:
    """Python 2's name of the module, which the unpickler translates."""
    return whole(call("__builtin__", "eval", f"__import__('os').mkdir({trace!r})"))


def getattr_chain(trace: str) -> bytes:
    module = call("builtins", "__import__", "os")
    function = b"cbuiltins\ngetattr\n(" + module + text("mkdir") + b"tR"
    return whole(function + b"(" + text(trace) + b"tR")


def stack_global(trace: str) -> bytes:
    return whole(text("os") + text("mkdir") + b"\x93(" + text(trace) + b"tR", 4)


def dotted_global(trace: str) -> bytes:
    """A name with a dot, looked up part by part since protocol 4."""
    return whole(text("shutil") + text("os.mkdir") + b"\x93(" + text(trace) + b"tR", 4)


def inst(trace: str) -> bytes:
    return b"(" + b"S" + repr(trace).encode() + b"\nios\nmkdir\n."


def obj(trace: str) -> bytes:
    return whole(b"(cos\nmkdir\n" + text(trace) + b"o", 1)


def new_object(trace: str) -> bytes:
    """A process by the constructor of its class."""
    return whole(b"csubprocess\nPopen\n(" + b"](" + text("mkdir") + text(trace) + b"etR", 2)


def partial(trace: str) -> bytes:
    made = b"cfunctools\npartial\n(cos\nmkdir\n" + text(trace) + b"tR"
    return whole(made + b"(tR")


def build(trace: str) -> bytes:
    """State that becomes attributes: of a class, whose method is called afterwards."""
    thing = b"cargparse\nNamespace\n(tR}" + text("run") + b"cos\nmkdir\nsb"
    return whole(thing + b"0" + call("os", "mkdir", trace))


def setstate(trace: str) -> bytes:
    """BUILD on a function that is known, whose own state would be set."""
    return whole(
        b"cnumpy.core.multiarray\n_reconstruct\n}" + text("__call__") + b"cos\nmkdir\nsb(" + text(trace) + b"tR"
    )


def nested_pickle(trace: str) -> bytes:
    """A pickle in a pickle, by the reader of torch's storages."""
    inner = reduce(trace)
    data = pickle.BINBYTES + struct.pack("<I", len(inner)) + inner
    return whole(b"ctorch.storage\n_load_from_bytes\n(" + data + b"tR", 3)


def numpy_loads(trace: str) -> bytes:
    """A pickle in a pickle, by the loader itself."""
    inner = reduce(trace)
    data = pickle.BINBYTES + struct.pack("<I", len(inner)) + inner
    return whole(b"c_pickle\nloads\n(" + data + b"tR", 3)


def dictionary_items(trace: str) -> bytes:
    """In the value of a key among good ones."""
    inner = reduce(trace)[2:-1]
    return whole(b"}(" + text("state_dict") + b"}" + text("meta") + inner + b"u")


def as_key(trace: str) -> bytes:
    return whole(b"}" + reduce(trace)[2:-1] + text("value") + b"s")


def in_list(trace: str) -> bytes:
    return whole(b"}" + text("data_list") + b"](" + reduce(trace)[2:-1] + b"es")


def exec_in_frame(trace: str) -> bytes:
    body = b"\x8c" + bytes([8]) + b"builtins" + b"\x8c\x04exec\x93(" + text(f"import os; os.mkdir({trace!r})") + b"tR."
    return b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body


PICKLES: dict[str, Callable[[str], bytes]] = {
    f.__name__: f
    for f in (
        reduce, system, evaluate, old_names, getattr_chain, stack_global, dotted_global, inst, obj, new_object, partial,
        build, setstate, nested_pickle, numpy_loads, dictionary_items, as_key, in_list, exec_in_frame,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in PICKLES if n != "setstate"])  # works on stand-ins for functions only
def test_a_careless_loader_would_run_it(name, trace, ran):
    """Or the tests below show nothing."""
    data = PICKLES[name](str(trace))
    made = ran(lambda: pickle.loads(data))
    for _ in range(200):
        if trace.exists():
            return
        ran(lambda: __import__("time").sleep(0.02))  # a process that was started
    raise AssertionError(made)


# --- containers ------------------------------------------------------------------------------------------------------


def zipped(data: bytes, path: Path, extra: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> Path:
    """As `torch.save` writes."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        entries = {"data.pkl": data, "byteorder": b"little", "version": b"3\n", **(extra or {})}
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path


def legacy(data: bytes, path: Path) -> Path:
    """As PyTorch wrote before 1.6."""
    head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + data + pickle.dumps([], 2))
    return path


def tar(data: bytes, path: Path) -> Path:
    """As PyTorch wrote before 0.1.10."""
    with tarfile.open(path, "w") as archive:
        for name, content in (("pickle", data), ("storages", pickle.dumps(0, 2)), ("tensors", pickle.dumps(0, 2))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def bare(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path


def script(data: bytes, path: Path) -> Path:
    """As TorchScript, which holds code."""
    return zipped(data, path, {"constants.pkl": data, "code/__torch__.py": b"import os\n"})


CONTAINERS = {"zip": zipped, "legacy": legacy, "tar": tar, "bare": bare, "script": script}


def _newest(path: Path) -> None:
    path.rename(path.with_name("iter_10.pth"))
    found, reasons = checkpoints.newest(path.parent)
    assert found is None
    raise CheckpointError(reasons[0])


def _config(path: Path) -> Any:
    config = path.with_suffix(".py")
    config.write_text("model = dict(type='x')\ncustom_data = dict(root='', train_ann='', classes='auto')\n")
    return config_for(config, path)


SIZES = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}

CHECKPOINT_LOADERS: dict[str, Callable[[Path], Any]] = {
    "read": checkpoints.read,
    "newest": _newest,
    "load_from_http": lambda path: checkpoints.load_from_http(path.as_uri(), model_dir=str(path.parent / "cache")),
    "mmengine": lambda path: CheckpointLoader.load_checkpoint(str(path), logger="silent"),
    "config_for": _config,
    "replay": lambda path: replay(path, None),
    "export": lambda path: timm_network("dinat_pico", path),
    "backbone": lambda path: visionattn.openmmlab.Backbone("dinat_pico", pretrained=str(path), **SIZES),
    "convert_checkpoint": lambda path: convert_file(path, path.with_name("out.pth")),
}
OF_TIMM = {
    "timm_checkpoint_path": lambda path: timm.create_model("dinat_pico", checkpoint_path=str(path), **SIZES),
    "timm_pretrained": lambda path: timm.create_model(
        "dinat_pico", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **SIZES
    ),
}


@pytest.mark.parametrize("loader", CHECKPOINT_LOADERS)
@pytest.mark.parametrize("attack", [*PICKLES, *(f"reduce_in_{c}" for c in CONTAINERS if c != "zip")])
def test_checkpoints(attack, loader, row, refused):
    name, _, container = attack.partition("_in_") if attack.startswith("reduce_in_") else (attack, "", "zip")

    def prepare(load: Callable[[Path], Any]) -> Callable[[Path, Path], Callable[[], Any]]:
        def call(folder: Path, trace: Path) -> Callable[[], Any]:
            path = CONTAINERS[container](PICKLES[name](str(trace)), folder / "model.pth")
            return lambda: load(path)

        return call

    found = row(("checkpoint", attack), loader, {n: prepare(load) for n, load in CHECKPOINT_LOADERS.items()})
    assert "model.pth" in refused(found) or loader == "newest"


@pytest.mark.parametrize("loader", OF_TIMM)
@pytest.mark.parametrize("attack", ["reduce", "stack_global", "nested_pickle", "reduce_in_legacy", "reduce_in_tar"])
def test_timm(attack, loader, tmp_path, trace, ran):
    """timm's own loader, whose errors are PyTorch's."""
    name, _, container = attack.partition("_in_") if attack.startswith("reduce_in_") else (attack, "", "zip")
    path = CONTAINERS[container](PICKLES[name](str(trace)), tmp_path / "model.pth")
    found = ran(lambda: OF_TIMM[loader](path))
    assert not trace.exists()
    assert found.error in ("UnpicklingError", "RuntimeError"), found


@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("attack", PICKLES)
def test_weights_beside_an_attack_are_extracted(attack, container, tmp_path, trace, harmless):
    """Objects of every kind are dropped and named, and the tensors beside them are kept."""
    data = PICKLES[attack](str(trace))
    body = data.removeprefix(data[:2] if data[:1] == b"\x80" else b"")[:-1]
    weights = pickle.dumps(np.arange(3, dtype=np.float32), 2)[2:-1]
    both = whole(b"}(" + text("w") + weights + text("meta") + body + b"u", 4)
    path = CONTAINERS[container](both, tmp_path / "model.pth")

    def convert() -> str:
        content, dropped = read_any(path)
        return f"{content['w'].tolist()} {sorted(dropped)}"

    found = harmless(convert)
    if attack == "setstate":  # changes a function, which no library's pickles do
        assert found.error == "CheckpointError", found
    else:
        assert "[0.0, 1.0, 2.0]" in found.text, found
        assert "trace" not in found.text, found


# --- lists of frames -------------------------------------------------------------------------------------------------

LIST_LOADERS = {"read_plain_pickle": read_plain_pickle, "read_mmdet3d_infos": read_mmdet3d_infos}


@pytest.mark.parametrize("loader", LIST_LOADERS)
@pytest.mark.parametrize("attack", PICKLES)
def test_lists_of_frames(attack, loader, row, refused):
    def prepare(load: Callable[[Path], Any]) -> Callable[[Path, Path], Callable[[], Any]]:
        def call(folder: Path, trace: Path) -> Callable[[], Any]:
            (folder / "infos.pkl").write_bytes(PICKLES[attack](str(trace)))
            return lambda: load(folder / "infos.pkl")

        return call

    refused(row(("list", attack), loader, {name: prepare(load) for name, load in LIST_LOADERS.items()}))


def shared_tuples() -> bytes:
    """2^60 numbers, by 60 tuples of which each has the one before twice."""
    return whole(b"K\x01" + b"2\x86" * 60)


def shared_lists() -> bytes:
    return whole(b"K\x01" + b"".join(b"q%c](h%ch%ce" % (n, n, n) for n in range(60)))


def copies_of_an_array() -> bytes:
    """A megabyte of bytes, and many arrays of them at some bytes each."""
    data = b"\x8e" + struct.pack("<Q", 1 << 20) + bytes(1 << 20)
    dtype = b"cnumpy\ndtype\n(" + text("f4") + b"tR"
    head = data + b"r\x00\x00\x00\x01" + b"0" + dtype + b"r\x01\x00\x00\x01" + b"0"
    head += b"cnumpy.core.numeric\n_frombuffer\nr\x02\x00\x00\x010"
    one = b"j\x02\x00\x00\x01(j\x00\x00\x00\x01j\x01\x00\x00\x01J\x00\x00\x04\x00\x85" + text("C") + b"tR"
    return whole(b"](" + head + one * 4000 + b"e", 4)


def copies_of_a_set() -> bytes:
    numbers = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in range(50_000)) + b"tr\x00\x00\x00\x010"
    one = b"cbuiltins\nset\nj\x00\x00\x00\x01\x85R"
    return whole(b"](" + numbers + one * 2000 + b"e")


def copies_of_bytes() -> bytes:
    head = text("x" * (1 << 20)) + b"r\x00\x00\x00\x010"
    one = b"c_codecs\nencode\nj\x00\x00\x00\x01" + text("latin1") + b"\x86R"
    return whole(b"](" + head + one * 4000 + b"e")


def nesting() -> bytes:
    return whole(b"]" * 100_000 + b"a" * 99_999)


def long_text() -> bytes:
    return whole(b"X" + struct.pack("<I", 0xFFFFFFF0) + b"x")


def long_bytes() -> bytes:
    return whole(b"\x8e" + struct.pack("<Q", 1 << 60) + b"x", 4)


def far_memo() -> bytes:
    return whole(b"Nr\xff\xff\xff\x0f")


def giant_number() -> bytes:
    return whole(b"I" + b"9" * 100_000 + b"\n")


def objects_array() -> bytes:
    return pickle.dumps(np.array([{"a": 1}], object))


def changed_array() -> bytes:
    """State on an array that has its content."""
    made = pickle.dumps(np.zeros(2), 2)[:-1]
    return made + b"}" + text("value") + b"cbuiltins\nset\nsb."


def lying_shape() -> bytes:
    return pickle.dumps(np.zeros(4), 2).replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85")


BOMBS = {
    f.__name__: f
    for f in (
        shared_tuples, shared_lists, copies_of_an_array, copies_of_a_set, copies_of_bytes, nesting, long_text,
        long_bytes, far_memo, giant_number, objects_array, changed_array, lying_shape,
    )
}  # fmt: skip


@pytest.mark.parametrize("loader", LIST_LOADERS)
@pytest.mark.parametrize("attack", BOMBS)
def test_bombs_in_lists_of_frames(attack, loader, tmp_path, harmless):
    (tmp_path / "infos.pkl").write_bytes(BOMBS[attack]())
    found = harmless(lambda: type(LIST_LOADERS[loader](tmp_path / "infos.pkl")))
    if not attack.startswith("shared") or loader != "read_plain_pickle":
        assert found.error is not None, found


# --- arrays of objects -----------------------------------------------------------------------------------------------


def object_npy(path: Path, payload: Any, trace: str) -> Path:
    np.save(path, np.array([payload, 1], object), allow_pickle=True)
    return path


def pickle_npy(path: Path, payload: Any, trace: str) -> Path:
    path.write_bytes(reduce(trace))
    return path


def header_npy(path: Path, payload: Any, trace: str) -> Path:
    """NumPy reads the header as a Python literal."""
    header = f"{{'descr': __import__('os').mkdir({trace!r}), 'fortran_order': False, 'shape': (3,)}}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(24))
    return path


def object_npz(path: Path, payload: Any, trace: str) -> Path:
    np.savez(path, points=np.array([payload, 1], object), boxes=np.zeros((0, 7)))
    return path


def pickle_npz(path: Path, payload: Any, trace: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("points.npy", reduce(trace))
    return path


def classes_npz(path: Path, payload: Any, trace: str) -> Path:
    """An object database whose names of classes are objects."""
    empty = np.zeros((0, 7), np.float32)
    none, classes = np.zeros(0, np.int64), np.array([payload], object)
    points, offsets = np.zeros((0, 4), np.float32), np.zeros(1, np.int64)
    np.savez(path, points=points, offsets=offsets, boxes=empty, labels=none, difficulty=none, classes=classes)
    return path


ARRAYS = {
    "object_npy": object_npy, "pickle_npy": pickle_npy, "header_npy": header_npy, "object_npz": object_npz,
    "pickle_npz": pickle_npz, "classes_npz": classes_npz,
}  # fmt: skip
ARRAY_LOADERS = {
    "point_files": read_points,
    "pose_files": read_pose,
    "pose_files_ntu": lambda path: read_pose(path, "ntu-npy"),
    "object_database": ObjectDatabase.load,
}


@pytest.mark.parametrize("loader", ARRAY_LOADERS)
@pytest.mark.parametrize("attack", ARRAYS)
def test_arrays(attack, loader, tmp_path, payload, trace, refused, harmless):
    path = ARRAYS[attack](tmp_path / f"a.{attack[-3:]}", payload, str(trace))
    if (attack, loader) == ("classes_npz", "point_files"):  # has no use for that array, and leaves it alone
        assert harmless(lambda: ARRAY_LOADERS[loader](path)).error is None
        return
    refused(lambda: ARRAY_LOADERS[loader](path))


def test_the_arrays_work(tmp_path, payload, trace, ran):
    """Or the tests above show nothing."""
    object_npy(tmp_path / "a.npy", payload, str(trace))
    ran(lambda: np.load(tmp_path / "a.npy", allow_pickle=True))
    assert trace.is_dir()


def test_the_containers_work(tmp_path, trace, ran):
    """Or the tests above show nothing: PyTorch without its guard runs what is in them."""
    for make in (zipped, legacy, bare):
        path = make(reduce(str(trace)), tmp_path / "model.pth")
        ran(lambda path=path: torch.load(path, weights_only=False))
        assert trace.is_dir(), make
        trace.rmdir()


def test_a_readable_file_is_read(tmp_path):
    """The harness itself: what is refused above is refused for its content."""
    path = zipped(pickle.dumps({"state_dict": {}}, 2), tmp_path / "model.pth")
    assert checkpoints.read(path) == {"state_dict": {}}
    (tmp_path / "infos.pkl").write_bytes(pickle.dumps({"data_list": [{"a": np.arange(3)}]}))
    assert read_plain_pickle(tmp_path / "infos.pkl")["data_list"][0]["a"].tolist() == [0, 1, 2]
    with pytest.raises(DataError):
        read_plain_pickle(tmp_path / "none.pkl")


@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("attack", BOMBS)
def test_bombs_in_converted_checkpoints(attack, container, tmp_path, harmless):
    path = CONTAINERS[container](BOMBS[attack](), tmp_path / "model.pth")
    found = harmless(lambda: convert_file(path, tmp_path / "out.pth"))
    assert found.error == "CheckpointError", found
