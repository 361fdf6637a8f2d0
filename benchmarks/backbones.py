"""Whole backbones: images per second and peak memory, inference and a training step, ours against timm's.

    python benchmarks/backbones.py [--threads 2] [--rounds 7] [--only dinat_tiny,swin_tiny_patch4_window7_224]
        [--batch 1,8] [--size 224] [--out benchmarks/results/backbones.csv]

Peers of similar cost: Swin-T, ConvNeXt-T and DaViT-T of timm; for DiNAT, also the same model, with the same weights,
on a plain gather of all neighbors, which is what one can do without a kernel. That twin is compared with ours before
anything is timed. Timing alternates between all models of a batch size; the peak memory of each is that of a process
of its own, less what it holds once the model is built.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from common import RESULTS, alternate, machine, summary, write_csv
from torch import nn

from visionattn import __version__
from visionattn.kernels.neighborhood.gather import gather_attention
from visionattn.layers.neighborhood import NeighborhoodAttentionBase

OURS = ["dinat_mini", "dinat_tiny", "dinat_s_tiny", "nat_mini", "biformer_tiny", "biformer_small"]
PEERS = ["swin_tiny_patch4_window7_224", "convnext_tiny", "davit_tiny"]
TWIN = "dinat_mini+gather"


class GatheredAttention(nn.Module):
    """The attention layer of a model with its kernel replaced by a gather; shares the layer's weights."""

    def __init__(self, layer: NeighborhoodAttentionBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        q, k, v = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).unbind(-3)
        geometry = (layer.kernel_size, layer.stride, layer.dilation, layer.is_causal)
        out, _ = gather_attention(q, k, v, *geometry, layer.scale, layer.rpb, None, None)
        return layer.proj(out.flatten(-2))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name.removesuffix("+gather"), drop_path_rate=0.0)
    if name.endswith("+gather"):
        for module in list(model.modules()):
            if isinstance(getattr(module, "attn", None), NeighborhoodAttentionBase):
                module.attn = GatheredAttention(module.attn)
    return model.to(DEVICE)


def check_twin(size: int) -> None:
    x = torch.randn(1, 3, size, size, device=DEVICE)
    with torch.no_grad():
        ours, twin = build("dinat_mini").eval()(x), build(TWIN).eval()(x)
    error = (ours - twin).abs().max().item()
    assert error < 1e-4 * max(1.0, ours.abs().max().item()), f"the gathered twin differs by {error:.1e}"
    print(f"twin agrees: largest difference {error:.1e}")


def step(name: str, mode: str, batch: int, size: int) -> Callable[[], None]:
    """A call that runs one batch through the model, and for ``train`` also backward and an update."""
    model = build(name).train(mode == "train")
    x = torch.randn(batch, 3, size, size, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4) if mode == "train" else None
    labels = torch.zeros(batch, dtype=torch.long, device=DEVICE)

    def run() -> None:
        if optimizer is None:
            with torch.inference_mode():
                model(x)
        else:
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def peak(name: str, mode: str, batch: int, size: int) -> float:
    """MiB that one call takes beyond the model, in a process of its own."""
    job = json.dumps([name, mode, batch, size, torch.get_num_threads()])
    command = [sys.executable, __file__, "--measure-memory", job]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident_peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands a parent's ru_maxrss down to the processes it starts
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure_memory(job: str) -> None:
    name, mode, batch, size, threads = json.loads(job)
    torch.set_num_threads(threads)
    run = step(name, mode, batch, size)
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        run()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    before = resident_peak()
    run()
    print(resident_peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--batch", default="1,8", help="batch sizes, separated by commas")
    parser.add_argument("--modes", default="inference,train")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=RESULTS / "backbones.csv")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        measure_memory(arguments.measure_memory)
        return
    torch.set_num_threads(arguments.threads)
    check_twin(arguments.size)
    names = [n for n in (*OURS, TWIN, *PEERS) if timm.is_model(n.removesuffix("+gather"))]
    if arguments.only:
        names = [n for n in names if n in arguments.only.split(",")]
    common = dict(
        size=arguments.size, machine=machine(), torch=torch.__version__, timm=timm.__version__, visionattn=__version__
    )
    rows = []
    for mode in arguments.modes.split(","):
        for batch in map(int, arguments.batch.split(",")):
            steps = {name: step(name, mode, batch, arguments.size) for name in names}
            times = alternate(steps, arguments.rounds)
            del steps
            for name, visits in times.items():
                figures = summary(visits)
                rate = round(batch / figures["median_ms"] * 1e3, 2)
                memory = round(peak(name, mode, batch, arguments.size), 1)
                print(f"{mode} batch {batch} {name}: {rate} images/s, peak {memory} MiB")
                row = dict(model=name, mode=mode, batch=batch, images_per_s=rate, peak_mib=memory)
                rows.append(row | figures | common)
    write_csv(arguments.out, rows)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if __name__ == "__main__":
    main()
