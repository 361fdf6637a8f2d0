"""Write configs/README.md and configs/index.json: every config with its backbone, head, dataset and published score.

`visionattn configs` reads index.json.

python docs/generate_configs.py [--check]
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from visionattn.engine.config.load import load_config

FOLDER = Path(__file__).resolve().parents[1] / "configs"
TARGETS = (FOLDER / "README.md", FOLDER / "index.json")
NAT = "[2204.07143](https://arxiv.org/abs/2204.07143)"
DINAT = "[2209.15001](https://arxiv.org/abs/2209.15001)"
BIFORMER = "[2303.08810](https://arxiv.org/abs/2303.08810)"
DAVIT = "[2204.03645](https://arxiv.org/abs/2204.03645)"
SAT = "[2303.10438](https://arxiv.org/abs/2303.10438)"
AGENT = "[2312.08874](https://arxiv.org/abs/2312.08874)"
SOURCES = {"agent": AGENT, "deit": SAT, "nat": NAT, "dinat": DINAT, "biformer": BIFORMER, "davit": DAVIT}

# Box and mask AP, box AP, mIoU of one scale, or PQ, mask AP and mIoU, as published, by the start of the file name and
# one of its other parts.
PUBLISHED = {
    ("mask-rcnn", "ms-3x"): "nat-mini 46.5/41.7, nat-tiny 47.7/42.6, nat-small 48.4/43.2, dinat-mini 47.2/42.5, "
    "dinat-tiny 48.6/43.5, dinat-small 49.3/44.0, dinat-s-tiny 46.6/42.1, dinat-s-small 48.6/43.5, "
    "davit-tiny 47.4/42.9, davit-small 49.5/44.3, davit-base 49.9/44.6, agent-swin-tiny 47.3/42.7, "
    "agent-swin-small 48.9/43.8",
    ("mask-rcnn", "ms-1x"): "davit-tiny 45.0/41.1, davit-small 47.7/42.9, davit-base 48.2/43.3, "
    "agent-swin-tiny 44.6/40.7, agent-swin-small 47.2/42.7",
    ("mask-rcnn", "1x"): "biformer-small 47.8/43.2, biformer-base 48.6/43.7",
    ("cascade-mask-rcnn", "ms-3x"): "nat-mini 50.3/43.6, nat-tiny 51.4/44.5, nat-small 52.0/44.9, nat-base 52.3/45.1, "
    "dinat-mini 51.2/44.4, dinat-tiny 52.2/45.1, dinat-small 52.9/45.8, dinat-base 53.4/46.2, dinat-large 55.3/47.8, "
    "dinat-s-tiny 51.0/44.1, dinat-s-small 52.3/45.2, dinat-s-base 52.6/45.3, dinat-s-large 54.8/47.2",
    ("retinanet", "1x"): "biformer-small 45.9, biformer-base 47.1",
    ("retinanet", "ms-1x"): "davit-tiny 44.0, davit-small 46.0, davit-base 46.7",
    ("retinanet", "ms-3x"): "davit-tiny 46.5, davit-small 48.2, davit-base 48.7",
    ("mask2former", "coco-panoptic"): "dinat-large 58.5/49.2/68.3",
    ("mask2former", "coco-instance"): "dinat-large 50.8",
    ("mask2former", "ade20k-panoptic-640x640"): "dinat-large 49.4/35.0/56.3",
    ("mask2former", "ade20k-instance-640x640"): "dinat-large 35.4",
    ("mask2former", "ade20k-640x640"): "dinat-large 58.1 multi-scale",
    ("mask2former", "cityscapes-panoptic-512x1024"): "dinat-large 67.2/44.5/83.4",
    ("mask2former", "cityscapes-instance-512x1024"): "dinat-large 45.1",
    ("mask2former", "cityscapes-512x1024"): "dinat-large 84.5 multi-scale",
    ("sat", "30e"): "deit-small 98.45/80.96/94.13",
    ("sat", "5e"): "deit-small 73.13/60.15/70.52",
    ("semantic-fpn", "80k"): "biformer-small 48.9, biformer-base 49.9",
    (
        "upernet",
        "160k",
    ): "nat-mini 45.1, nat-tiny 47.1, nat-small 48.0, nat-base 48.5, dinat-mini 45.8, dinat-tiny 47.8, "
    "dinat-small 48.9, dinat-base 49.6, dinat-large 54.0, dinat-s-tiny 46.0, dinat-s-small 48.6, dinat-s-base 49.4, "
    "dinat-s-large 53.4, biformer-small 49.8, biformer-base 51.0, davit-tiny 46.3, davit-small 48.8, davit-base 49.4",
}

PUBLISHED_BY_NAME = {
    "scatterformer_8xb4-20e_nuscenes": ("68.3/72.4", "[2401.00912](https://arxiv.org/abs/2401.00912)"),
    "scatterformer_8xb4-24e_waymo": (
        "L2 mAP 75.7, mAPH 73.8 (val)",
        "[2401.00912](https://arxiv.org/abs/2401.00912)",
    ),
}

# Folders that are not named after the job.
JOBS = {"bev": "lidar", "demo": "detection", "pose": "action"}

# By a part of the file name; COCO where none is in it.
DATASETS = {
    "ade20k": "ADE20K",
    "cityscapes": "Cityscapes",
    "bccd": "BCCD",
    "digits": "digits",
    "camvid": "CamVid",
    "nuclei": "nuclei",
    "custom": "your own data",
    "cub-": "CUB",
    "openimages": "OpenImages30k",
    "imagenet": "ImageNet",
    "brgen": "BR-Gen",
    "synthetic": "synthetic forgeries",
    "photographs": "synthetic forgeries",
    "smarthome": "Toyota Smarthome",
    "ntu60": "NTU RGB+D 60",
    "nucla": "NW-UCLA",
    "figures": "moving figures",
    "lidar-samples": "simulated scans",
    "kitti": "KITTI",
    "nuscenes": "nuScenes",
    "waymo": "Waymo",
    "div2k": "DIV2K",
    "photos": "photographs",
    "protocol-cat": "CASIAv2, FantasticReality, IMD20, tampCOCO",
}

# Models whose backbone is a part of their network.
OWN_BACKBONES = {"NFAViTLocalizer": "MiT-b2, MiT-b0", "SuperResolver": "–"}

# What this package's own runs gave, with where it is told.
TRAINED = {
    "scatterformer-pico_30e_lidar-samples": "car BEV AP 0.890 ([LiDAR](../docs/lidar.md))",
    "timesformer_figures": "top-1 59.6, 3 seeds ([pose](../docs/pose.md))",
    "paat-timesformer_figures": "top-1 69.6, 3 seeds ([pose](../docs/pose.md))",
    "paab-timesformer_figures": "top-1 96.9, 3 seeds ([pose](../docs/pose.md))",
    "cam_resnet10t_digits": "MaxBoxAccV2 34.4, Top-1 51.0 (best center box: 10.6)",
    "forgery-net_dinat-pico_synthetic": "pixel F1 0.427, image AUC 0.763 ([forgery](../docs/forgery.md))",
    "forgery-net_dinat-pico_synthetic-pairs": "pixel F1 0.444, image AUC 0.782 ([forgery](../docs/forgery.md))",
    "forgery-net_dinat-pico_synthetic-cut": "pixel F1 0.586, image AUC 0.915 ([forgery](../docs/forgery.md))",
    "forgery-net_dinat-pico_photographs": "pixel F1 0.469, image AUC 0.819 ([card](../visionattn/zoo/forgery.md))",
    "atss_dinat-pico_fpn_bccd": "AP 0.570 ([BCCD](../docs/trained.md#bccd))",
    "atss_dinat-nano_fpn_bccd": "AP 0.611 ([BCCD](../docs/trained.md#bccd))",
    "atss_resnet18-ela_fpn_bccd": "AP 0.392, without ELA 0.395, 3 seeds, 400 iterations "
    "([modules](../docs/attention_modules.md))",
    "atss_dinat-pico_fpn_digits": "AP 0.455 ([README](../README.md))",
    "semantic-fpn_dinat-nano_camvid": "mIoU 61.7 ([CamVid](../docs/trained.md#camvid))",
    "mask-rcnn_dinat-pico_fpn_nuclei": "mask AP 0.547 ([page](../docs/trained.md#nuclei))",
}

HEADER = """# Configs

This file is generated by `docs/generate_configs.py`; do not edit it. `visionattn configs` prints the same list. The
commands take the names, from any folder: `visionattn train NAME`. `visionattn configs NAME --copy` writes a copy to
edit; the files that it inherits from remain in the package (`_base_ = "visionattn::..."`).

- **Published** is the result of the authors, not measured here: box AP / mask AP or box AP on COCO val2017, mIoU of one
  scale on ADE20K validation; of Mask2Former, mask AP of instances, and PQ / mask AP / mIoU of panoptic models; of SAT,
  GT-known / Top-1 / Top-5 localization on the test images; on nuScenes validation, mAP / NDS. These configs follow
  their schedules in batch size, optimizer, learning rate and stochastic depth; the authors trained some models in mixed
  precision (here `--amp`).
- **Ours** is the result of training this config with this package; a dash means that it has not been trained.
- The published schedules start from ImageNet weights, which `pretrained=True` downloads; those of Agent-Swin have to be
  downloaded from the authors' page. To train from random weights, use
  `--cfg-options model.backbone.pretrained=False`.
- The batch sizes are for 8 devices. `visionattn data coco`, `visionattn data ade20k` and `visionattn data
  cityscapes` explain the layout of `data/`.
- Norms and position bias tables have no weight decay, unless the authors applied it to all parameters. None of these
  schedules uses layer-wise learning rate decay.

"""


def published(stem: str) -> tuple[str | None, str | None]:
    """The score of a config and its source, or None."""
    if stem in PUBLISHED_BY_NAME:
        return PUBLISHED_BY_NAME[stem]
    head, backbone = stem.split("_")[:2]
    for (name, schedule), scores in PUBLISHED.items():
        parts = [part.split("-", 1)[-1] if part.startswith("8x") else part for part in stem.split("_")]
        if "cityscapes" in stem and "cityscapes" not in schedule:
            continue
        if name == head and schedule in parts:
            found = dict(entry.strip().split(" ", 1) for entry in scores.split(","))
            if backbone in found:
                return found[backbone], SOURCES[backbone.split("-")[0]]
    return None, None


def describe(path: Path) -> dict[str, Any]:
    """The entry of a config: texts in Markdown, None where there is no result."""
    config = load_config(path, resolve_data=False)
    model, stem = config.model, path.stem
    score, source = published(stem)
    kind = model.type.removeprefix("visionattn.")
    dataset = next((name for key, name in DATASETS.items() if key in stem), "COCO")
    relative = path.relative_to(FOLDER)
    return {
        "path": relative.as_posix(),
        "job": JOBS.get(relative.parts[0], relative.parts[0]),
        "model": model.decode_head.type if kind == "EncoderDecoder" else kind,
        "backbone": backbone(model.backbone) if "backbone" in model else OWN_BACKBONES[kind],
        "data": dataset + next((f", {kind}" for kind in ("panoptic", "instance") if f"-{kind}" in stem), ""),
        "published": score,
        "source": source,
        "ours": TRAINED.get(stem),
        "options": required_options(config.get("custom_data") or {}),
    }


def backbone(config: dict[str, Any]) -> str:
    """The name of the timm model, and the attention that replaces its own or is inserted."""
    kinds = ", ".join(dict.fromkeys(plugin["type"] for plugin in config.get("plugins", ())))
    return f"`{config['model_name']}`" + (f" with {kinds}" if kinds else "")


def required_options(custom_data: dict[str, Any]) -> list[str]:
    """The options without which a config for custom data cannot be trained."""
    files = [f"custom_data.{key}=FILE.json" for key in ("train_ann", "val_ann") if custom_data.get(key) == ""]
    return [*(["custom_data.root=FOLDER"] if custom_data.get("root") == "" else []), *files]


def row(entry: dict[str, Any]) -> str:
    """The line of a config in README.md."""
    keys = ("backbone", "model", "data", "published", "source", "ours")
    cells = (f"[{Path(entry['path']).stem}]({entry['path']})", *(entry[key] or "–" for key in keys))
    return f"| {' | '.join(cells)} |"


def plain(entry: dict[str, Any]) -> str:
    """The line of a config in index.json, without Markdown and references."""
    kept = {key: value for key, value in entry.items() if key != "source"}
    texts = {key: re.sub(r" ?\(\[.*?\]\(.*?\)\)|`", "", text) for key, text in kept.items() if isinstance(text, str)}
    return json.dumps({**kept, **texts}, ensure_ascii=False)


def render() -> tuple[str, str]:
    """The contents of `TARGETS`."""
    entries = [describe(path) for path in sorted(FOLDER.rglob("*.py")) if "_base_" not in path.parts]
    lines = ["| config | backbone | head | dataset | published | source | ours |", "|---|---|---|---|---|---|---|"]
    ordered = sorted(entries, key=lambda entry: (entry["job"], Path(entry["path"]).stem))
    index = "[\n" + ",\n".join(map(plain, ordered)) + "\n]\n"
    return HEADER + "\n".join([*lines, *map(row, entries)]) + "\n", index


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="only say whether the files are up to date")
    check, status = parser.parse_args().check, 0
    for target, text in zip(TARGETS, render(), strict=True):
        if check:
            current = target.read_text(encoding="utf-8") if target.exists() else ""
            if current != text:
                print(f"{target} is out of date; run: python docs/generate_configs.py", file=sys.stderr)
                status = 1
        else:
            target.write_text(text, encoding="utf-8")
            print(f"wrote {target}")
    return status


if __name__ == "__main__":
    sys.exit(main())
