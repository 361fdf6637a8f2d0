import torch

from visionattn.heads.localization import batch_mean as module
from visionattn.heads.localization.batch_mean import batch_mean


def test_mean_over_processes_keeps_the_own_gradient(monkeypatch):
    own = torch.tensor(1.0, requires_grad=True)
    assert batch_mean(own, sync=True) is own, "one process has nothing to ask"
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(module.dist, "all_reduce", lambda value: value.add_(4.0))  # the other process has 4
    mean = batch_mean(own, sync=True)
    assert mean.item() == 2.5
    (mean - 3).abs().backward()
    assert own.grad.item() == -1  # DDP then averages the gradients of all processes
    assert batch_mean(own, sync=False) is own
