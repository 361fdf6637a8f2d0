"""Write docs/backbones.md: every backbone with its counted size and cost, published accuracy, weights and parity.

    python docs/generate_backbones.py [--check]

Parameters and operations are counted on the meta device; the rest is what the papers and the authors' pages say.
"""

import argparse
import sys
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # noqa: F401  (registers the models)
from visionattn.backbones.scatterformer import ScatterFormer

TARGET = Path(__file__).with_name("backbones.md")
TIMM_DAVIT = ["davit_tiny.msft_in1k", "davit_small.msft_in1k", "davit_base.msft_in1k", "davit_large"]

NAT = "[2204.07143](https://arxiv.org/abs/2204.07143)"
DINAT = "[2209.15001](https://arxiv.org/abs/2209.15001)"
BIFORMER = "[2303.08810](https://arxiv.org/abs/2303.08810)"
DAVIT = "[2204.03645](https://arxiv.org/abs/2204.03645)"

# ImageNet-1k top-1 as published; None where nothing is.
TOP1 = {
    "nat_mini.in1k": (81.8, NAT),
    "nat_tiny.in1k": (83.2, NAT),
    "nat_small.in1k": (83.7, NAT),
    "nat_base.in1k": (84.3, NAT),
    "dinat_mini.in1k": (81.8, DINAT),
    "dinat_tiny.in1k": (82.7, DINAT),
    "dinat_small.in1k": (83.8, DINAT),
    "dinat_base.in1k": (84.4, DINAT),
    "dinat_large.in22k_ft_in1k_224": (86.6, DINAT),
    "dinat_large.in22k_ft_in1k_384": (87.4, DINAT),
    "dinat_large_11x11.in22k_ft_in1k_384": (87.5, DINAT),
    "dinat_s_tiny.in1k": (81.8, DINAT),
    "dinat_s_small.in1k": (83.5, DINAT),
    "dinat_s_base.in1k": (83.8, DINAT),
    "dinat_s_large.in22k_ft_in1k_224": (86.5, DINAT),
    "dinat_s_large.in22k_ft_in1k_384": (87.4, DINAT),
    "nat_isotropic_small.in1k": (80.0, DINAT),
    "nat_isotropic_base.in1k": (81.6, DINAT),
    "dinat_isotropic_small.in1k": (80.8, DINAT),
    "dinat_isotropic_base.in1k": (82.1, DINAT),
    "vitrpb_small.in1k": (81.2, DINAT),
    "vitrpb_base.in1k": (82.5, DINAT),
    "biformer_tiny.in1k": (81.4, BIFORMER),
    "biformer_small.in1k": (83.8, BIFORMER),
    "biformer_base.in1k": (84.3, BIFORMER),
    "biformer_stl.in1k": (82.7, BIFORMER),
    "biformer_stl.nchw_in1k": (82.7, BIFORMER),
    "davit_tiny.msft_in1k": (82.8, DAVIT),
    "davit_small.msft_in1k": (84.2, DAVIT),
    "davit_base.msft_in1k": (84.6, DAVIT),
}

# Models whose full-size outputs and gradients are compared in the tests with recordings of the authors' code.
RECORDED = {"nat_mini", "dinat_mini", "dinat_s_tiny", "dinat_isotropic_small", "biformer_tiny", "davit_tiny"}

DENSE = (
    ("Mask R-CNN, COCO, 3x", "nat_mini 46.5/41.7, nat_tiny 47.7/42.6, nat_small 48.4/43.2, dinat_mini 47.2/42.5, "
     "dinat_tiny 48.6/43.5, dinat_small 49.3/44.0, dinat_s_tiny 46.6/42.1, dinat_s_small 48.6/43.5, "
     "davit_tiny 47.4/42.9, davit_small 49.5/44.3, davit_base 49.9/44.6"),
    ("Cascade Mask R-CNN, COCO, 3x", "nat_mini 50.3/43.6, nat_tiny 51.4/44.5, nat_small 52.0/44.9, "
     "nat_base 52.3/45.1, dinat_mini 51.2/44.4, dinat_tiny 52.2/45.1, dinat_small 52.9/45.8, dinat_base 53.4/46.2, "
     "dinat_large 55.3/47.8, dinat_s_tiny 51.0/44.1, dinat_s_small 52.3/45.2, dinat_s_base 52.6/45.3, "
     "dinat_s_large 54.8/47.2"),
    ("Mask R-CNN, COCO, 1x", "biformer_small 47.8/43.2, biformer_base 48.6/43.7, davit_tiny 45.0/41.1, "
     "davit_small 47.7/42.9, davit_base 48.2/43.3"),
    ("RetinaNet, COCO, 1x, box AP", "biformer_small 45.9, biformer_base 47.1, davit_tiny 44.0, davit_small 46.0, "
     "davit_base 46.7"),
    ("Semantic FPN, ADE20K, mIoU", "biformer_small 48.9, biformer_base 49.9"),
    ("UPerNet, ADE20K, mIoU single scale", "nat_mini 45.1, nat_tiny 47.1, nat_small 48.0, nat_base 48.5, "
     "dinat_mini 45.8, dinat_tiny 47.8, dinat_small 48.9, dinat_base 49.6, dinat_large 54.0, dinat_s_tiny 46.0, "
     "dinat_s_small 48.6, dinat_s_base 49.4, dinat_s_large 53.4, biformer_small 49.8, biformer_base 51.0, "
     "davit_tiny 46.3, davit_small 48.8, davit_base 49.4"),
)  # fmt: skip

HEADER = """# Backbones

Written by `docs/generate_backbones.py`; change that, not this.

- **Parameters** are counted in the whole classifier of the tag.
- **GMACs** are counted on one image at the size given, by `torch.utils.flop_counter`, halved, since papers count a
  multiplication with its addition as one. It counts products of matrices, convolutions, and attention: dense attention
  by its products, neighborhood and routing attention by the pairs of query and key that attend to each other
  (`visionattn/kernels/*/flops.py`). Norms, activations, softmax and additions are not counted. Of models of videos
  they are those of one frame, and of pose-aware models those without a pose, which only adds what it covers. What
  ScatterFormer computes follows from the voxels that a scan fills, so it has no such number; the size given is that of
  its default grid, not a limit.
- **Top-1** is ImageNet-1k accuracy as published, not measured here.
- **Parity** says what the tests compare with recordings of the authors' code: *recorded* is this model at full size,
  outputs within 1e-5 and gradients within 1e-4; *family* is small configurations of the same code; *none* has nothing
  published to compare with.
- **Licence** is that of the weights, where upstream states one: the repository of NAT and DiNAT is under MIT and states
  none for its weights apart from that; timm gives that of the DaViT weights. A dash means that there are no weights.

"""


def count(name: str) -> tuple[int, float | None]:
    """Parameters, and multiply-adds of one image in units of 1e9; None where they depend on what is in it."""
    model = timm.create_model(name, device="meta").eval()
    if isinstance(model, ScatterFormer):
        return sum(p.numel() for p in model.parameters()), None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *model.default_cfg["input_size"], device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


def is_ours(name: str) -> bool:
    return timm.models.model_entrypoint(name.split(".")[0]).__module__.startswith("visionattn.")


def tags() -> list[str]:
    """Every registered model of this package, each of its tags, and timm's DaViT."""
    names = []
    for name in filter(is_ours, timm.list_models()):
        names += timm.models.get_arch_pretrained_cfgs(name) or [name]
    return sorted(names) + TIMM_DAVIT


def row(name: str) -> str:
    parameters, macs = count(name)
    arch = name.split(".")[0]
    cfg = timm.get_pretrained_cfg(name)
    top1, source = TOP1.get(name, (None, ""))
    if cfg.hf_hub_id:
        weights = f"[hub](https://huggingface.co/timm/{name})"
    else:
        weights = f"[file]({cfg.url})" if cfg.url else "none released"
    has_weights = cfg.hf_hub_id or cfg.url
    stated = cfg.license if cfg.hf_hub_id else f"not stated (code: {cfg.license})" if cfg.license else "not stated"
    licence = stated if has_weights else "–"
    published = has_weights or top1 or arch.startswith("davit") or "timesformer_base" in arch
    published = published or arch in ("scatterformer_waymo", "scatterformer_nuscenes")
    parity = "recorded" if arch in RECORDED else "family" if published else "none"
    accuracy = f"{top1} ({source})" if top1 else "–"
    cost = "by voxels" if macs is None else f"{macs:.2f}"
    cells = (f"`{name}`", cfg.input_size[-1], f"{parameters:,}", cost, accuracy, weights, licence, parity)
    return f"| {' | '.join(map(str, cells))} |"


def render() -> str:
    lines = [
        "| model | image | parameters | GMACs | top-1 | weights | licence | parity |",
        "|---|---|---|---|---|---|---|---|",
        *map(row, tags()),
    ]
    dense = [
        "",
        "## Published dense results",
        "",
        "Box and mask AP, or mIoU, of the authors' full models; not measured here. Their backbones load with "
        "`load_official`; `dilations=` takes the schedule, `drop_path_rate=` theirs.",
        "",
        *(f"- **{setting}**: {figures}" for setting, figures in DENSE),
        "",
        "## DaViT",
        "",
        "The `davit_*` models are timm's. What `visionattn` works around in timm 1.0.31:",
        "",
        "- `ffn=False` builds a model whose forward pass calls None; mended by `load_official`, `visionattn.Backbone`",
        "  and `visionattn.backbones.davit.DaViT`.",
        "- Unknown `attn_types` are left out in silence; an error in `DaViT`.",
        "- Its conversion of official checkpoints replaces parts of names anywhere, and knows neither a `backbone.`",
        "  prefix nor the norms of the dense models; `load_official` reads whole names.",
        "- Stochastic depth has one rate per pair of blocks; `DaViT` has the authors' schedule, one per block.",
        "- The published large model, windows of 12 at 384 pixels, is missing; it is `davit_large_window12_384`.",
    ]
    return HEADER + "\n".join(lines + dense) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    text = render()
    if parser.parse_args().check:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if current != text:
            print(f"{TARGET} is out of date; run: python docs/generate_backbones.py", file=sys.stderr)
        return int(current != text)
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
