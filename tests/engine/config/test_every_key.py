"""Every key of ten configs acts: changing it changes what is built, or it is refused.

Runs go through `train` and `test`, with small stand-ins for models, datasets and metrics, which are compared by the
arguments that they are created with.
"""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import cv2
import pytest
import torch

pytest.importorskip("mmdet")

from fixtures.paths import REPO
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import Registry
from mmengine.runner import TestLoop as StockTestLoop
from torch.utils.data import Dataset

from visionattn.engine.compat import install
from visionattn.engine.config.load import apply_options, load_config
from visionattn.engine.config.options import is_known
from visionattn.engine.train import testing, train
from visionattn.engine.train.loops import EpochLoop, IterLoop
from visionattn.engine.weights import FitReport
from visionattn.errors import ConfigError

FILES = (
    "detection/atss/atss_dinat-pico_fpn_coco_custom.py",
    "detection/mask_rcnn/mask-rcnn_dinat-mini_fpn_ms-3x_coco.py",
    "detection/dino/dino-4scale_dinat-mini_8xb2-12e_coco.py",
    "segmentation/semantic_fpn/semantic-fpn_dinat-pico_masks_custom.py",
    "segmentation/upernet/upernet_davit-tiny_8xb2-160k_ade20k-512x512.py",
    "segmentation/mask2former/mask2former_dinat-mini_8xb2-lsj-50e_coco-panoptic.py",
    "forgery/forgery_net/forgery-net_dinat-mini_4xb16-200e_brgen-512x512.py",
    "localization/sat_deit-small_5e_imagenet-224.py",
    "pose/moving_figures/paat-timesformer_figures.py",
    "bev/scatterformer-pico_30e_lidar-samples.py",
)
EXEMPT = {
    "auto_scale_lr.base_batch_size": "acts with auto_scale_lr.enable=True, as in mmdet",
    "env_cfg.dist_cfg.backend": "acts with several processes",
    "custom_imports": "evaluated when the file is read; a failing import is an error",
    "default_scope": "decides which package's classes are looked up, which the stand-ins replace",
    "custom_data": "sets the datasets and classes (test_load.py)",
    "load_from": "see test_resuming.py and test_train.py",
    "resume": "see test_resuming.py",
    "work_dir": "see test_train.py",
}
VALUES = {"log_level": "ERROR", "env_cfg.mp_cfg.mp_start_method": "spawn", "env_cfg.mp_cfg.opencv_num_threads": 3}
WHOLE = {  # parts that are given to constructors as they are
    "model": "model", "train_dataloader.dataset": "dataset", "val_dataloader.dataset": "dataset",
    "val_evaluator": "metric", "test_dataloader.dataset": "dataset", "test_evaluator": "metric",
}  # fmt: skip


class Model(BaseModel):
    def __init__(self, config: Any) -> None:
        super().__init__(BaseDataPreprocessor())
        self.backbone, self.config = torch.nn.Linear(2, 2), config

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        raise NotImplementedError


class Data(Dataset):
    def __init__(self) -> None:
        self.metainfo = {"classes": ("a",)}

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        return 1000

    def get_data_info(self, index: int) -> dict[str, int]:
        return {"width": 10, "height": 10}


class Metric(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        raise NotImplementedError

    def compute_metrics(self, results: list) -> dict:
        return {}


STANDINS = {"model": Model, "dataset": lambda config: Data(), "metric": lambda config: Metric()}


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Return a function that trains or tests with a config until the first batch, and returns all that was built."""
    install()
    monkeypatch.setattr(Config, "pretty_text", property(lambda self: ""))  # takes seconds
    for module in (train, testing):
        monkeypatch.setattr(module, "install", lambda: None)
        monkeypatch.setattr(module, "check_config", lambda *a, **k: None)
        monkeypatch.setattr(module, "check_data", lambda *a, **k: [])
    calls: list[tuple[str, Any]] = []
    runners: list[Any] = []
    build = Registry.build

    def recording(self: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((self.name, plain(cfg)))
        return STANDINS[self.name](cfg) if self.name in STANDINS else build(self, cfg, *args, **kwargs)

    monkeypatch.setattr(Registry, "build", recording)
    for loop in (EpochLoop, IterLoop, StockTestLoop):
        monkeypatch.setattr(loop, "run", lambda self: runners.append(self.runner) or {})
    monkeypatch.setattr(testing.checkpoints, "read", lambda path: {"state_dict": {}})
    monkeypatch.setattr(testing, "fit", lambda *a, **k: FitReport("weights.pth", ()))
    monkeypatch.setattr(testing, "file_sha256", lambda path: "")
    monkeypatch.setattr(testing, "describe_dataset", lambda *a: {})

    def run(config: Config, split: str) -> dict[str, Any]:
        calls.clear()
        before = cv2.getNumThreads(), torch.backends.cudnn.benchmark, torch.multiprocessing.get_start_method()
        try:
            if split == "train":
                train.train(config, work_dir=tmp_path / "run")
            else:
                testing.test(config, "weights.pth", tmp_path / "test")
            return {"calls": list(calls), **state(runners[-1], split)}
        finally:
            cv2.setNumThreads(before[0])
            torch.backends.cudnn.benchmark = before[1]
            torch.multiprocessing.set_start_method(before[2], force=True)
            torch.use_deterministic_algorithms(False)

    return run


def state(runner: Any, split: str) -> dict[str, Any]:
    """Return what a runner has taken from the keys that are not arguments of registered classes."""
    loops = [runner.train_loop, runner.val_loop] if split == "train" else [runner.test_loop]
    loaders = [loop.dataloader for loop in loops if loop is not None]
    return {
        "loops": [simple(vars(loop)) for loop in loops if loop is not None],
        "loaders": [
            (simple(vars(d)), simple(vars(getattr(d.batch_sampler, "batches", d.batch_sampler)))) for d in loaders
        ],
        "hooks": [(type(hook).__name__, simple(vars(hook))) for hook in runner.hooks],
        "log": ([h.level for h in runner.logger.handlers], simple(vars(runner.log_processor))),
        "env": (
            cv2.getNumThreads(),
            torch.backends.cudnn.benchmark,
            torch.multiprocessing.get_start_method(),
            torch.are_deterministic_algorithms_enabled(),
            runner.seed,
        ),
        "rates": split == "train" and [group["lr"] for group in runner.optim_wrapper.param_groups],
    }


def simple(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (int, float, str, bool, type(None), list, tuple, dict)
    return {k: plain(repr(v)) for k, v in values.items() if isinstance(v, kinds) and "0x" not in repr(v)}


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, str):
        return re.sub(r"\d{8}_\d{6}|_\d+_\d+$", "", value)  # times, and numbers of runs
    return value if isinstance(value, (int, float, type(None))) else type(value).__name__


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of all values that are neither dicts nor lists of dicts."""
    items = list(node.items()) if isinstance(node, Mapping) else list(enumerate(node))
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        if (isinstance(value, Mapping) and value) or (
            isinstance(value, list) and any(isinstance(v, Mapping) for v in value)
        ):
            yield from leaves(value, here)
        else:
            yield here, value


def other(value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}_"
    if isinstance(value, tuple):
        return tuple(other(v) for v in value) or (1,)
    return [other(v) for v in value] if value else type(value)()


def shared(node: Any, path: str, seen: dict[int, str]) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ConfigDict, list)):
        if id(node) in seen:
            yield seen[id(node)], path
        seen[id(node)] = path
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from shared(value, f"{path}.{key}", seen)


def at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = config[int(part)] if isinstance(config, list) else config[part]
    return config


@pytest.fixture(params=FILES)
def file(request):
    return REPO / "configs" / request.param


def test_every_variable_acts(file):
    config = load_config(file, resolve_data=False)
    refused = []
    acting = {k: plain(v) for k, v in config.to_dict().items() if is_known(k)}
    for key, value in leaves({k: v for k, v in config.items() if not is_known(k)}):
        if value in ({}, []):
            continue
        try:
            changed = load_config(file, {key: other(value)}, resolve_data=False)
        except ConfigError as error:
            refused.append((key, str(error)))
            continue
        assert {k: plain(v) for k, v in changed.to_dict().items() if is_known(k)} != acting, key
    assert len(refused) <= 2, refused
    assert all("changes nothing, as the config replaces" in text for _, text in refused), refused


def test_a_key_changes_no_other_key(file):
    config = load_config(file, resolve_data=False)
    assert list(shared(config._cfg_dict, "", {})) == []


def test_constructors_receive_whole_parts(file, built):
    config = load_config(file, resolve_data=False)
    records = {split: built(deepcopy(config), split) for split in ("train", "test")}
    for path, registry in WHOLE.items():
        split = "test" if path.startswith("test") else "train"
        expected = plain(at(config, path))
        for part in expected if isinstance(expected, list) else [expected]:
            found = [cfg for name, cfg in records[split]["calls"] if name == registry]
            assert any({**cfg, **part} == cfg for cfg in found), path
    again = {split: built(deepcopy(config), split) for split in ("train", "test")}
    assert again == records, "the same every time"
    hooks = [cfg for name, cfg in records["train"]["calls"] if name == "hook" and isinstance(cfg, dict)]
    for part in [*config.default_hooks.values(), *(config.get("custom_hooks") or [])]:
        part = {k: v for k, v in plain(part).items() if k != "type"}
        assert any({**cfg, **part} == cfg for cfg in hooks), part


def test_every_other_key_acts(file, built):
    config = load_config(file, resolve_data=False)
    parts = (*WHOLE, "default_hooks", "custom_hooks")
    records = {split: built(deepcopy(config), split) for split in ("train", "test")}
    for key, value in leaves({k: v for k, v in config.items() if is_known(k)}):
        if any(key == name or key.startswith(f"{name}.") for name in (*parts, *EXEMPT)):
            continue
        changed = deepcopy(config)
        new = VALUES.get(key, other(value))
        apply_options(changed, {key: new})
        split = "test" if key.startswith("test_") else "train"
        try:
            record = built(changed, split)
        except (ConfigError, KeyError, ValueError, AssertionError):  # refused by the class that receives it
            continue
        assert record != records[split], key


def test_custom_hooks_act_in_test(built):
    config = load_config(REPO / "configs" / FILES[0], resolve_data=False)
    config.custom_hooks = [{"type": "EMAHook"}, {"type": "EmptyCacheHook", "after_iter": True}]
    hooks = dict(built(config, "test")["hooks"])
    assert hooks["EmptyCacheHook"]["_do_after_iter"] == "True"
    assert "EMAHook" not in hooks, "checkpoints contain the averaged weights"
