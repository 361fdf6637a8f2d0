"""Write configs/README.md: every config with its backbone, head, dataset and published score.

python docs/generate_configs.py [--check]
"""

import argparse
import sys
from pathlib import Path

from visionattn.engine.config.load import load_config

FOLDER = Path(__file__).resolve().parents[1] / "configs"
TARGET = FOLDER / "README.md"
NAT = "[2204.07143](https://arxiv.org/abs/2204.07143)"
DINAT = "[2209.15001](https://arxiv.org/abs/2209.15001)"
BIFORMER = "[2303.08810](https://arxiv.org/abs/2303.08810)"
DAVIT = "[2204.03645](https://arxiv.org/abs/2204.03645)"
SAT = "[2303.10438](https://arxiv.org/abs/2303.10438)"
SOURCES = {"deit": SAT, "nat": NAT, "dinat": DINAT, "biformer": BIFORMER, "davit": DAVIT}

# Box and mask AP, box AP, mIoU of one scale, or PQ, mask AP and mIoU, as published, by the start of the file name and
# one of its other parts.
PUBLISHED = {
    ("mask-rcnn", "ms-3x"): "nat-mini 46.5/41.7, nat-tiny 47.7/42.6, nat-small 48.4/43.2, dinat-mini 47.2/42.5, "
    "dinat-tiny 48.6/43.5, dinat-small 49.3/44.0, dinat-s-tiny 46.6/42.1, dinat-s-small 48.6/43.5, "
    "davit-tiny 47.4/42.9, davit-small 49.5/44.3, davit-base 49.9/44.6",
    ("mask-rcnn", "ms-1x"): "davit-tiny 45.0/41.1, davit-small 47.7/42.9, davit-base 48.2/43.3",
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
    "scatterformer_8xb4-24e_waymo": (
        "L2 mAP 75.7, mAPH 73.8 (val)",
        "[2401.00912](https://arxiv.org/abs/2401.00912)",
    ),
}

# By a part of the file name; COCO where none is in it.
DATASETS = {
    "ade20k": "ADE20K",
    "cityscapes": "Cityscapes",
    "bccd": "BCCD",
    "digits": "digits",
    "camvid": "CamVid",
    "nuclei": "nuclei",
    "custom": "your own",
    "cub-": "CUB",
    "openimages": "OpenImages30k",
    "imagenet": "ImageNet",
    "brgen": "BR-Gen",
    "synthetic": "synthetic forgeries",
    "smarthome": "Toyota Smarthome",
    "ntu60": "NTU RGB+D 60",
    "nucla": "NW-UCLA",
    "figures": "moving figures",
    "lidar-samples": "simulated scans",
    "kitti": "KITTI",
    "nuscenes": "nuScenes",
    "waymo": "Waymo",
    "protocol-cat": "CASIAv2, FantasticReality, IMD20, tampCOCO",
}

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
    "atss_dinat-pico_fpn_bccd": "AP 0.556 ([README](../README.md))",
    "atss_dinat-pico_fpn_digits": "AP 0.455 ([README](../README.md))",
    "semantic-fpn_dinat-pico_camvid": "mIoU 24.1, 3 seeds ([CamVid](../docs/trained.md#camvid))",
    "semantic-fpn_resnet18_camvid": "mIoU 28.4, 3 seeds ([CamVid](../docs/trained.md#camvid))",
    "mask-rcnn_dinat-pico_fpn_nuclei": "mask AP 0.499 ([page](../docs/trained.md#nuclei))",
}

HEADER = """# Configs

This file is generated by `docs/generate_configs.py`; do not edit it.

- **Published** is the result of the authors, not measured here: box AP / mask AP or box AP on COCO val2017, mIoU of one
  scale on ADE20K validation; of Mask2Former, mask AP of instances, and PQ / mask AP / mIoU of panoptic models; of SAT,
  GT-known / Top-1 / Top-5 localization on the test images. These configs follow their schedules in batch size,
  optimizer, learning rate and stochastic depth; the authors trained some models in mixed precision (here `--amp`).
- **Ours** is the result of training this config with this package; a dash means that it has not been trained.
- The published schedules start from ImageNet weights, which `pretrained=True` downloads. To train from random weights,
  use `--cfg-options model.backbone.pretrained=False`.
- The batch sizes are for 8 devices. `visionattn data coco`, `visionattn data ade20k` and `visionattn data
  cityscapes` explain the layout of `data/`.
- Norms and position bias tables have no weight decay, unless the authors applied it to all parameters. None of these
  schedules uses layer-wise learning rate decay.

"""


def published(stem: str) -> tuple[str, str]:
    """The score of a config and its source, or dashes."""
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
    return "–", "–"


def row(path: Path) -> str:
    model = load_config(path, resolve_data=False).model
    stem = path.stem
    score, source = published(stem)
    kind = model.type.removeprefix("visionattn.")
    head = model.decode_head.type if kind == "EncoderDecoder" else kind
    dataset = next((name for key, name in DATASETS.items() if key in stem), "COCO")
    dataset += next((f", {kind}" for kind in ("panoptic", "instance") if f"-{kind}" in stem), "")
    link = f"[{stem}]({path.relative_to(FOLDER).as_posix()})"
    backbone = f"`{model.backbone.model_name}`" if "backbone" in model else "MiT-b2, MiT-b0"
    cells = (link, backbone, head, dataset, score, source, TRAINED.get(stem, "–"))
    return f"| {' | '.join(cells)} |"


def render() -> str:
    files = sorted(p for p in FOLDER.rglob("*.py") if "_base_" not in p.parts)
    lines = ["| config | backbone | head | dataset | published | source | ours |", "|---|---|---|---|---|---|---|"]
    return HEADER + "\n".join([*lines, *map(row, files)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    text = render()
    if parser.parse_args().check:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if current != text:
            print(f"{TARGET} is out of date; run: python docs/generate_configs.py", file=sys.stderr)
        return int(current != text)
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
