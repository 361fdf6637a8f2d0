"""Resuming follows the config: exactly if nothing has changed, else with the new rates and schedules."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from visionattn.engine.train.loops import EpochLoop
from visionattn.engine.train.resuming import restore

WARMUP = dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=3)
COSINE = dict(type="CosineAnnealingLR", by_epoch=False, begin=3, end=20, T_max=17)
EPOCHS = dict(type="MultiStepLR", by_epoch=True, milestones=[2, 3], gamma=0.1)


class Epochs(EpochLoop):
    """A loop over epochs of five iterations."""

    dataloader = range(5)

    def __init__(self, iterations, epochs):
        self._iter, self._epoch = iterations, epochs


def make(schedules, lr=0.1, iterations=0, epochs=0, **options):
    parameter = torch.nn.Parameter(torch.ones(2))
    wrapper = OptimWrapper(torch.optim.SGD([{"params": [parameter]}], lr=lr, momentum=0.9, **options))

    def build(configs):
        return [PARAM_SCHEDULERS.build(dict(c), default_args={"optimizer": wrapper}) for c in configs]

    return SimpleNamespace(
        optim_wrapper=wrapper,
        param_schedulers=schedules,
        build_param_scheduler=build,
        train_loop=Epochs(iterations, epochs) if epochs else SimpleNamespace(_iter=iterations),
        parameter=parameter,
    )


def run(schedules, iterations, per_epoch=None, **options):
    """Train for some iterations, and return the runner and the learning rate of each iteration."""
    runner = make(schedules, **options)
    runner.param_schedulers = runner.build_param_scheduler(schedules)
    rates = advance(runner, iterations, per_epoch)
    return runner, rates


def advance(runner, iterations, per_epoch=None):
    rates = []
    for number in range(iterations):
        rates.append(runner.optim_wrapper.param_groups[0]["lr"])
        runner.parameter.grad = torch.ones(2)
        runner.optim_wrapper.step()
        for scheduler in runner.param_schedulers:
            if not scheduler.by_epoch or (per_epoch and (number + 1) % per_epoch == 0):
                scheduler.step()
    return rates


def states(runner):
    return runner.optim_wrapper.state_dict(), [s.state_dict() for s in runner.param_schedulers]


def resumed(runner, schedules, iterations, epochs=0, **options):
    new = make(schedules, iterations=iterations, epochs=epochs, **options)
    return new, restore(new, *states(runner)).changes


def test_nothing_changed():
    whole, rates = run([WARMUP, COSINE], 20)
    half, _ = run([WARMUP, COSINE], 9)
    new, changes = resumed(half, [WARMUP, COSINE], 9)
    assert changes == []
    assert advance(new, 11) == rates[9:]
    assert new.optim_wrapper.state_dict()["state"][0]["momentum_buffer"].equal(
        whole.optim_wrapper.state_dict()["state"][0]["momentum_buffer"]
    )


def test_longer_schedule_and_other_rate():
    longer = {**COSINE, "end": 40, "T_max": 37}
    _, rates = run([WARMUP, longer], 40, lr=0.05)
    half, _ = run([WARMUP, COSINE], 9)
    new, changes = resumed(half, [WARMUP, longer], 9, lr=0.05)
    assert set(changes) == {"lr 0.1 -> 0.05", "param_scheduler.1.end 20 -> 40", "param_scheduler.1.T_max 17 -> 37"}
    assert advance(new, 31) == pytest.approx(rates[9:], rel=1e-12)


@pytest.mark.filterwarnings("error:Detected call")
def test_only_the_rate():
    _, rates = run([WARMUP, COSINE], 20, lr=0.4)
    half, _ = run([WARMUP, COSINE], 2)
    new, changes = resumed(half, [WARMUP, COSINE], 2, lr=0.4)
    assert changes == ["lr 0.1 -> 0.4"]
    assert advance(new, 18) == pytest.approx(rates[2:], rel=1e-12)


def test_other_kinds_of_schedules():
    half, _ = run([WARMUP, COSINE], 9)
    _, rates = run([WARMUP], 20)
    new, changes = resumed(half, [WARMUP], 9)
    assert changes == ["number of schedules 2 -> 1"]
    assert advance(new, 11) == pytest.approx(rates[9:], rel=1e-12)
    new, changes = resumed(half, [WARMUP, dict(type="ConstantLR", by_epoch=False, factor=0.5, end=30)], 9)
    assert "type of param_scheduler.1 another one -> ConstantLR" in changes
    new, changes = resumed(half, [], 9)
    assert new.optim_wrapper.param_groups[0]["lr"] == 0.1


def test_epochs_and_iterations():
    changed = {**EPOCHS, "milestones": [1, 3]}
    _, rates = run([WARMUP, changed], 20, per_epoch=5)
    half, _ = run([WARMUP, EPOCHS], 12, per_epoch=5)
    new, changes = resumed(half, [WARMUP, changed], 12, epochs=2)
    assert len(changes) == 1
    assert "milestones" in changes[0]
    assert new.optim_wrapper.param_groups[0]["lr"] == pytest.approx(rates[12], rel=1e-12)


def test_other_options_of_the_optimizer():
    half, _ = run([WARMUP, COSINE], 9)
    before = half.optim_wrapper.param_groups[0]["lr"]
    new, changes = resumed(half, [WARMUP, COSINE], 9, weight_decay=0.3)
    assert changes == ["weight_decay 0 -> 0.3"]
    group = new.optim_wrapper.param_groups[0]
    assert (group["weight_decay"], group["momentum"], group["lr"]) == (0.3, 0.9, before)


def test_without_schedules():
    half, _ = run([], 3)
    new, changes = resumed(half, None, 3, lr=0.2)
    assert changes == ["lr 0.1 -> 0.2"]
    assert new.optim_wrapper.param_groups[0]["lr"] == 0.2
    new, changes = resumed(half, None, 3)
    assert changes == []
    assert "initial_lr" not in new.optim_wrapper.param_groups[0]


def test_a_dumped_config_does_not_resume(tmp_path):
    from visionattn.engine.train.runner import Runner

    config = Config({"model": {}, "resume": True, "load_from": "a.pth"}, filename=None)
    Runner.dump_config(SimpleNamespace(cfg=config, work_dir=str(tmp_path)))
    written = Config.fromfile(tmp_path / "config.py")
    assert (written.resume, written.load_from) == (False, None)
    assert config.resume, "the config itself is unchanged"
