"""Averaged weights, accumulated gradients, mixed precision and W&B: what they do, and that runs with them resume."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.load import load_config
from visionattn.engine.model import load_model
from visionattn.engine.train import train_options
from visionattn.engine.train.curve import read_records
from visionattn.engine.train.hooks import Interrupted, StopHook
from visionattn.engine.train.testing import test as measure
from visionattn.engine.train.train import train
from visionattn.errors import CheckpointError, ConfigError

measure.__test__ = False
SAME = ("state_dict", "ema_state_dict", "optimizer", "gradients")


def records(folder: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(folder)]


def assert_equal(ours, theirs, where: str) -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(theirs, (dict, list, tuple)):
        assert len(ours) == len(theirs), where
        keys = theirs if isinstance(theirs, dict) else range(len(theirs))
        for key in keys:
            assert_equal(ours[key], theirs[key], f"{where}.{key}")
    else:
        assert ours == theirs, where


def assert_same_run(folder: Path, reference: Path, last: str) -> None:
    assert records(folder) == records(reference)
    ours, theirs = checkpoints.read(folder / last), checkpoints.read(reference / last)
    for key in SAME:
        assert (key in ours) == (key in theirs), key
        if key in theirs:
            assert_equal(ours[key], theirs[key], key)


OPTIONS = {"ema": 0.1, "accumulate": 3}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, coco_dir, make_config) -> Path:
    """8 iterations, steps after the 3rd, 6th and 8th, checkpoints after every 2nd, validation after the 4th and 8th."""
    folder = tmp_path_factory.mktemp("options")
    train(load_config(make_config(folder / "tiny.py", coco_dir)), work_dir=folder / "run", **OPTIONS)
    return folder / "run"


def test_resumes_between_two_steps(tmp_path, coco_dir, make_config, unbroken, monkeypatch):
    """From iteration 4, of which the gradient waits for those of 5 and 6."""
    config = make_config(tmp_path / "tiny.py", coco_dir)

    def crash(self, runner, *args, **kwargs):
        if runner.iter + 1 == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StopHook, "after_train_iter", crash)
        with pytest.raises(KeyboardInterrupt):
            train(load_config(config), work_dir=tmp_path / "run", **OPTIONS)
    saved = checkpoints.read(tmp_path / "run" / "iter_4.pth")
    assert any(g.abs().sum() > 0 for g in saved["gradients"].values())
    with pytest.raises(CheckpointError, match="resume with `ema`"):
        train(load_config(config), work_dir=tmp_path / "run", resume=True, accumulate=3)
    train(load_config(config), work_dir=tmp_path / "run", resume=True, **OPTIONS)
    assert_same_run(tmp_path / "run", unbroken, "iter_8.pth")
    assert "gradients" not in checkpoints.read(unbroken / "iter_6.pth")


def test_stop_in_a_validation_saves_the_trained_weights(tmp_path, coco_dir, make_config, unbroken, monkeypatch):
    """The model has the averaged weights then, which must not become the trained ones."""
    config = make_config(tmp_path / "tiny.py", coco_dir)
    original = StopHook.after_val_iter

    def asked(self, runner, *args, **kwargs):
        self.requested = signal.SIGTERM
        return original(self, runner, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopHook, "after_val_iter", asked)
        with pytest.raises(Interrupted) as stop:
            train(load_config(config), work_dir=tmp_path / "run", **OPTIONS)
    assert stop.value.iteration == 4
    train(load_config(config), work_dir=tmp_path / "run", resume=True, **OPTIONS)
    assert_same_run(tmp_path / "run", unbroken, "iter_8.pth")


def test_averaged_weights_are_measured_saved_and_used(tmp_path, config_file, unbroken):
    saved = checkpoints.read(unbroken / "iter_8.pth")
    averaged, trained = saved["state_dict"], saved["ema_state_dict"]
    differ = [n for n, w in averaged.items() if w.is_floating_point() and not torch.equal(w, trained[f"module.{n}"])]
    assert len(differ) > 20
    model = load_model(load_config(config_file), unbroken / "iter_8.pth").model
    assert all(torch.equal(w, averaged[n]) for n, w in model.state_dict().items())
    result = measure(load_config(config_file), unbroken / "iter_8.pth", tmp_path / "out")
    assert result.metrics == records(unbroken)[-1]["val"]


def test_the_average_is_that_of_the_formula(unbroken):
    """ExpMomentumEMA: momentum (1 - 0.1) exp(-(1 + t) / 2000) + 0.1, a first copy, then 7 averages."""
    saved = {i: checkpoints.read(unbroken / f"iter_{i}.pth") for i in (6, 8)}
    name = "bbox_head.atss_cls.weight"
    before = saved[6]["state_dict"][name].double()
    # the weights of iteration 7 are those of 6, as no step is taken between; those of 8 come with the last step
    for step, weights in ((6, saved[6]["ema_state_dict"]), (7, saved[8]["ema_state_dict"])):
        momentum = 0.9 * np.exp(-(1 + step) / 2000) + 0.1
        before = (1 - momentum) * before + momentum * weights[f"module.{name}"].double()
    torch.testing.assert_close(saved[8]["state_dict"][name].double(), before, rtol=1e-4, atol=1e-7)


PLAIN = {
    "model.backbone.norm_eval": True,  # no statistics of batches
    "model.decode_head.dropout_ratio": 0.0,
    "train_dataloader.dataset.pipeline.2.prob": 0.0,
    "train_dataloader.sampler.shuffle": False,
    "optim_wrapper.optimizer.type": "SGD",  # AdamW's first steps amplify rounding
    "optim_wrapper.optimizer.lr": 0.1,
}


def test_accumulating_is_a_larger_batch(tmp_path, make_segmentation):
    pytest.importorskip("mmseg")
    config = make_segmentation(tmp_path)
    runs = {}
    for name, batch, count, iterations in (("large", 4, 1, 2), ("small", 1, 4, 8), ("never", 1, 1, 2)):
        options = {**PLAIN, "train_dataloader.batch_size": batch, "train_cfg.max_iters": iterations}
        result = train(load_config(config, options), work_dir=tmp_path / name, accumulate=count)
        runs[name] = checkpoints.state_dict_of(checkpoints.read(result.checkpoint))
        runs[name, "loss"] = [r["loss"] for r in records(tmp_path / name) if "loss" in r]
    for name, weight in runs["large"].items():
        torch.testing.assert_close(runs["small"][name], weight, rtol=1e-4, atol=1e-6)
    assert not all(torch.allclose(runs["never"][n], w, rtol=1e-4, atol=1e-6) for n, w in runs["large"].items())
    np.testing.assert_allclose(np.reshape(runs["small", "loss"], (2, 4)).mean(1), runs["large", "loss"], rtol=1e-5)


def test_mixed_precision_without_a_gpu(tmp_path, coco_dir, make_config, unbroken):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    config = load_config(make_config(tmp_path / "tiny.py", coco_dir), {"train_cfg.max_iters": 2})
    seen = set()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda m, i, o: seen.add(o.dtype) if isinstance(m, torch.nn.Conv2d) else None
    )
    with hook:
        result = train(config, work_dir=tmp_path / "run", amp=True)
    assert torch.bfloat16 in seen
    ours, theirs = records(tmp_path / "run")[0]["loss"], records(unbroken)[0]["loss"]
    assert ours == pytest.approx(theirs, rel=0.05)
    assert ours != theirs
    weights = checkpoints.state_dict_of(checkpoints.read(result.checkpoint))
    assert all(w.dtype == torch.float32 for w in weights.values() if w.is_floating_point())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ema": 0.999}, r"`ema` must be in \(0, 0\.5\), got 0\.999"),
        ({"ema": 0.0}, r"`ema` must be in \(0, 0\.5\), got 0"),
        ({"accumulate": 0}, "`accumulate` must be at least 1, got 0"),
    ],
)
def test_values(tmp_path, config_file, option, message):
    with pytest.raises(ConfigError, match=message):
        train(load_config(config_file), work_dir=tmp_path / "run", **option)


def test_a_config_with_its_own_average_keeps_it(config_file):
    config = load_config(config_file)
    config.custom_hooks = [dict(type="EMAHook", momentum=0.01)]
    train_options.use_ema(config, None)
    assert config.custom_hooks == [dict(type="EMAHook", momentum=0.01)]
    train_options.use_ema(config, 0.02)
    assert config.custom_hooks == [dict(type="EMAHook", momentum=0.02)]


class _Stop(Exception):  # noqa: N818
    """Ends a run when everything is built."""
