"""mmengine's own Runner with types of this package: everything but `visionattn.Backbone` is unchanged."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine")


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


UNCHANGED = """
import os, sys, warnings
import scipy.sparse, scipy.special  # mmdet imports them, and they set filters of their own
import mmengine.runner, mmengine.hooks
from mmengine.config import Config
from mmengine.runner import checkpoint

def state():
    functions = {name: getattr(checkpoint, name) for name in (
        "load_checkpoint", "load_from_local", "load_from_http", "save_checkpoint", "_load_checkpoint")}
    return {
        **functions, "runner": mmengine.runner.runner.save_checkpoint,
        "schemes": dict(checkpoint.CheckpointLoader._schemes), "text": Config.pretty_text,
        "filters": list(warnings.filters), "environment": os.environ.get("NO_ALBUMENTATIONS_UPDATE"),
    }

before = state()
import visionattn.openmmlab
from mmdet.registry import MODELS
assert MODELS.get("visionattn.Backbone").__name__ == "Backbone"
import mmdet.evaluation
assert state() == before
assert not [name for name in sys.modules if name.split(".")[0] == "panopticapi"]
assert visionattn.openmmlab.CAM.__name__ == "CAM"
assert state() == before
"""


def test_importing_changes_nothing_of_mmengine(tmp_path):
    run(UNCHANGED, tmp_path)


def test_install_changes_what_its_docstring_says_once(tmp_path):
    changed = """
from visionattn.engine import compat
compat.install()
after = state()
assert [name for name in before if before[name] != after[name]] == [
    "load_from_local", "load_from_http", "save_checkpoint", "runner", "schemes", "text", "filters", "environment"]
from mmdet.evaluation.metrics import coco_panoptic_metric
from visionattn.data.panoptic import PanopticStats
assert coco_panoptic_metric.PQStat is PanopticStats  # although mmdet was imported before
compat.install()
assert state() == after
"""
    # albumentations queries PyPI when it is imported, here before the variable that prevents it is unset
    unset = "import os, albumentations; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None)\n"
    run(unset + UNCHANGED + changed, tmp_path)


TRAINS = """
import os, torch
from pathlib import Path
import visionattn.openmmlab
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner, checkpoint

assert checkpoint.load_from_local.__module__ == "mmengine.runner.checkpoint"

@MODELS.register_module()
class Small(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)
    def forward(self, image, mode):
        return {"loss": sum(level.square().mean() for level in self.backbone(image))}

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return {"image": torch.full((3, 32, 32), float(index))}

def runner(iterations, resume):
    return Runner(
        model=dict(type="Small", backbone=dict(
            type="visionattn.Backbone", model_name="dinat_pico", out_indices=(0, 1), init_cfg=INIT)),
        work_dir="run", resume=resume, experiment_name=f"run_{iterations}",
        train_dataloader=dict(dataset=Images(), batch_size=2, num_workers=0, collate_fn=dict(type="default_collate"),
                              sampler=dict(type="InfiniteSampler", shuffle=False)),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2)),
        default_scope="mmengine",
    )

INIT = None
first = runner(2, False)
first.train()
saved = torch.load("run/iter_2.pth", weights_only=False)
assert type(saved["message_hub"]["log_scalars"]["train/loss"]) is HistoryBuffer  # as mmengine writes it
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # mmengine 0.10 needs it to read them with PyTorch 2.6 or newer
second = runner(4, True)
second.train()
assert second.iter == 4 and Path("run/iter_4.pth").is_file()

weights = {"state_dict": {f"backbone.{k}": v for k, v in first.model.backbone.state_dict().items()}}
torch.save(weights, "weights.pth")
INIT = dict(type="Pretrained", checkpoint="weights.pth", prefix="backbone.")
third = runner(1, False)
third.model.init_weights()
for name, value in first.model.backbone.state_dict().items():
    assert torch.equal(third.model.backbone.state_dict()[name], value), name
"""


def test_a_stock_runner_trains_saves_and_resumes(tmp_path):
    run(TRAINS, tmp_path)


def test_the_weights_of_init_cfg_are_read_safely_without_install(tmp_path):
    run(
        """
import os, torch
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # torch.load without weights_only=True would unpickle objects
from visionattn.openmmlab import Backbone
from visionattn.errors import CheckpointError

class Payload:
    def __reduce__(self):
        return os.mkdir, ("made",)

torch.save({"state_dict": {}, "meta": Payload()}, "file.pth")
for arguments in (dict(init_cfg=dict(type="Pretrained", checkpoint="file.pth")), dict(pretrained="file.pth")):
    try:
        Backbone("dinat_pico", **arguments).init_weights()
    except CheckpointError as error:
        assert "mkdir" in str(error), error
    else:
        raise AssertionError(arguments)
assert not os.path.exists("made")
""",
        tmp_path,
    )
