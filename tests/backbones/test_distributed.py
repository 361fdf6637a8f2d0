"""Training under DistributedDataParallel: two processes on the CPU are one process with both halves of the batch.

The file runs itself as the worker: ``python test_distributed.py RANK STORE RESULT``.
"""

import subprocess
import sys

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import visionattn  # noqa: F401  (registers the models)

WORLD = 2


def make_model():
    torch.manual_seed(0)
    return timm.create_model("dinat_pico", num_classes=5, depths=(1, 2, 1, 1), dilations="auto").double()


def make_batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2 * WORLD, 3, 64, 64, dtype=torch.double, generator=generator)
    return images, torch.arange(2 * WORLD) % 5


def train_step(model, images, labels):
    """One step; the loss is a mean, so that averaged gradients are those of the whole batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    F.cross_entropy(model(images), labels).backward()
    gradients = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    return gradients, {name.removeprefix("module."): value.clone() for name, value in model.state_dict().items()}


def work(rank, store, result):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    model = DistributedDataParallel(make_model(), device_ids=None)
    images, labels = make_batch()
    torch.save(train_step(model, images[rank::WORLD], labels[rank::WORLD]), result)
    dist.destroy_process_group()


def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "store"), str(tmp_path / f"{rank}.pt")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    gradients, weights = train_step(make_model(), *make_batch())
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    start = make_model().state_dict()
    for rank in range(WORLD):
        their_gradients, their_weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert their_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(their_gradients[name], gradient, rtol=1e-9, atol=1e-12)
        for name, weight in weights.items():
            torch.testing.assert_close(their_weights[name], weight, rtol=1e-6, atol=1e-9)
            assert not torch.equal(weight, start[name]), f"{name} was not trained"


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2], sys.argv[3])
