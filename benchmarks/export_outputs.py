"""Compare exported files, run with ONNX Runtime, to their PyTorch models on real images: one row per head.

    python benchmarks/export_outputs.py FOLDER [FOLDER ...] [--heads atss dino ...] [--docs docs/export.md]

Each head of ``configs/`` is built with random weights on ResNet-10-T, of which the last layers are scaled so that their
outputs vary (layer-sequential unit variance, arXiv 1511.06422), exported with dynamic batch and size, and run through
`Predictor` on images of different sizes, alone and in batches. ``nuclei`` and the following ones are the trained models
of the package. Rows of the CSV with the same head are replaced; ``--docs`` writes the table of all rows between the
markers of that file.

Columns: detections above the threshold in both; matched ones (same class, IoU of the boxes at least 0.99); largest
difference of their scores, and of the scores of images; smallest IoU of the masks of matched detections; smallest
fraction of equal pixels of class maps; largest difference of heat maps; and whether all bounds hold: the same
detections, scores within 1e-3, IoU of masks at least 0.99, 99.9 % equal pixels.
"""

import argparse
import csv
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import visionattn  # noqa: F401  registers the backbones
from visionattn.inference.export.comparison import match_boxes
from visionattn.io.inputs import find_inputs

DETECTION, SEGMENTATION = "configs/detection", "configs/segmentation"
CONFIGS = {
    "retinanet": f"{DETECTION}/retinanet/retinanet_biformer-small_fpn_1x_coco.py",
    "atss": f"{DETECTION}/atss/atss_dinat-mini_fpn_1x_coco.py",
    "faster-rcnn": f"{DETECTION}/mask_rcnn/mask-rcnn_dinat-mini_fpn_ms-3x_coco.py",
    "mask-rcnn": f"{DETECTION}/mask_rcnn/mask-rcnn_dinat-mini_fpn_ms-3x_coco.py",
    "cascade-mask-rcnn": f"{DETECTION}/cascade_rcnn/cascade-mask-rcnn_dinat-mini_fpn_ms-3x_coco.py",
    "dino": f"{DETECTION}/dino/dino-4scale_dinat-mini_8xb2-12e_coco.py",
    "mask2former-instance": f"{SEGMENTATION}/mask2former/mask2former_dinat-pico_coco_custom.py",
    "mask2former-panoptic": f"{SEGMENTATION}/mask2former/mask2former_dinat-mini_8xb2-lsj-50e_coco-panoptic.py",
    "mask2former-semantic": f"{SEGMENTATION}/mask2former/mask2former_dinat-mini_8xb2-160k_ade20k-512x512.py",
    "semantic-fpn": f"{SEGMENTATION}/semantic_fpn/semantic-fpn_dinat-mini_8xb2-160k_cityscapes-512x1024.py",
    "upernet": f"{SEGMENTATION}/upernet/upernet_dinat-mini_8xb2-160k_ade20k-512x512.py",
    "segformer": f"{SEGMENTATION}/segformer/segformer-head_dinat-mini_8xb2-160k_ade20k-512x512.py",
    "forgery-net": "configs/forgery/forgery_net/forgery-net_dinat-mini_4xb16-200e_brgen-512x512.py",
    "nfa-vit": "configs/forgery/nfa_vit/nfa-vit_4xb16-200e_brgen-512x512.py",
    "cam": "configs/localization/cam_resnet10t_digits.py",
    "sat": "configs/localization/sat_vit-pico_digits.py",
}
TRAINED = ("nuclei", "blood-cells", "digits", "forgery")
SIDE, PROPOSALS = 256, 100
FIELDS = ["head", "images", "detections", "onnx", "matched", "score", "box", "mask_iou", "equal_pixels", "heat",
          "bounds", "torch_s", "onnx_s", "export_s", "mib"]  # fmt: skip
SPREAD = {
    r"rpn_cls$": (1.5, -2.0),
    r"(retina_cls|atss_cls)$": (0.5, -2.0),  # scores close to 1 would be ties
    r"(fc_cls|cls_embed|conv_seg)$": (2.5, 0.0),
    r"(classifier|sat\.head)$": (2.5, None),
    r"(sat\.vit|noise_backbone)\..*\.attn\.(qkv|q|kv)$": (2.0, 0.0),
    r"cls_branches\.\d+$": (1.5, -2.0),
    r"(retina_reg|atss_reg|rpn_reg|fc_reg)$": (0.3, 0.0),
    r"(mask_head.*conv_logits|seg_decoder\.conv_last)$": (2.0, 0.0),
}
"""Standard deviation and mean of the outputs of the last layers, by their names; None keeps the means of the classes,
of which the scores of an image are made."""
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def build(head: str, image: np.ndarray):
    """Return a model with random weights and its test pipeline; the outputs for the image vary."""
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope

    from visionattn.engine.config.build import building, drop_initialisation, quiet
    from visionattn.engine.config.load import load_config
    from visionattn.engine.model import LoadedModel, _array_pipeline

    cfg = load_config(CONFIGS[head], resolve_data=False)
    model = cfg.model
    if "dinat" in str(model.get("backbone", {}).get("model_name")) or "biformer" in str(model.get("backbone")):
        small = {"type": "visionattn.Backbone", "model_name": "resnet10t"}
        if "pico" in model.backbone.model_name:
            small["channels"] = (32, 64, 128, 256)
        model.backbone = {**small, "out_indices": tuple(i + 1 for i in model.backbone.get("out_indices", range(4)))}
    if head == "faster-rcnn":
        model.type = "FasterRCNN"
        del model.roi_head["mask_head"], model.roi_head["mask_roi_extractor"]
    _shrink(cfg)
    _fewer(model)
    drop_initialisation(model)
    torch.manual_seed(1)
    with quiet(), building(head), DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        net = revert_sync_batchnorm(MODELS.build(model)).eval()
        pipeline = _array_pipeline(cfg, head, 1.0)
    if hasattr(net, "level_embed"):  # of DINO, without values before init_weights
        torch.nn.init.normal_(net.level_embed)
    classes = tuple(f"class {index}" for index in range(_classes(net)))
    loaded = LoadedModel(net, cfg, classes, [(0, 0, 0)] * len(classes), torch.device("cpu"), _pipelines={1.0: pipeline})
    _spread(loaded, image)
    return loaded


def _shrink(cfg) -> None:
    """Resize the test images to `SIDE`, for time."""
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    for step in dataset.pipeline:
        if step["type"].endswith("Resize") and step.get("keep_ratio"):
            step["scale"] = (SIDE * 4 // 3, SIDE)


def _fewer(model) -> None:
    """For time, keep two layers of transformers (all are alike), 100 queries, `PROPOSALS` proposals and 30 boxes."""
    if "rpn" in (model.get("test_cfg") or {}):
        model.test_cfg.rpn.max_per_img = PROPOSALS
        model.test_cfg.rcnn.max_per_img = 30
    if "num_queries" in model:
        model.num_queries = 100
        model.test_cfg["max_per_img"] = 100
    for part in (model.get("panoptic_head"), model.get("decode_head")):
        if part and "pixel_decoder" in part:
            part.pixel_decoder.encoder.num_layers = 1
            part.transformer_decoder.num_layers = 2
    for name in ("encoder", "decoder"):
        if name in model:
            model[name].num_layers = 2


def _classes(net) -> int:
    for path in ("bbox_head.num_classes", "panoptic_head.num_classes", "roi_head.bbox_head.num_classes",
                 "decode_head.num_classes", "head.num_classes", "sat.num_classes"):  # fmt: skip
        value = net
        for part in path.split("."):
            value = getattr(value[-1] if isinstance(value, torch.nn.ModuleList) else value, part, None)
        if isinstance(value, int):
            return value
    return 2


def _spread(loaded, image: np.ndarray) -> None:
    """Scale the last layers by their outputs for the image: scores differ, and some exceed the thresholds."""
    from visionattn.inference import Predictor

    def adjust(layer, inputs, out, std: float, mean: float | None):
        axis = 1 if out.ndim == 4 else -1
        rows = out.movedim(axis, -1).flatten(0, -2)
        found = float(rows.std(0).mean())
        if found < 1e-6:  # the same everywhere
            return out
        factor = std / found
        layer.bias.data.sub_(rows.mean(0) * (mean is not None)).mul_(factor).add_(mean or 0.0)
        layer.weight.data.mul_(factor)
        handles.pop(layer).remove()
        return layer(*inputs)

    handles: dict = {}
    for name, layer in loaded.model.named_modules():
        for pattern, values in SPREAD.items():
            if re.search(pattern, name) and hasattr(layer, "weight"):
                handles[layer] = layer.register_forward_hook(
                    lambda layer, inputs, out, values=values: adjust(layer, inputs, out, *values)
                )
    with torch.no_grad():
        Predictor.from_model(loaded, batch_size=1)(image)
    for handle in handles.values():  # of layers that were not used
        handle.remove()


def compare(expected, given) -> dict:
    """Return the columns for the predictions of both."""
    row = dict.fromkeys(FIELDS, "") | {"images": len(expected), "detections": 0, "onnx": 0, "matched": 0}
    worst: dict[str, float] = {}

    def note(name: str, value: float, least: bool = False) -> None:
        worst[name] = (min if least else max)(worst.get(name, value), value)

    for one, other in zip(expected, given, strict=True):
        boxes, scores, labels = (
            [torch.from_numpy(np.asarray(getattr(p, name))) for p in (one, other)]
            for name in ("boxes", "scores", "labels")
        )
        rows, partners = match_boxes(boxes[0], labels[0], boxes[1], labels[1], 0.99)
        row["detections"] += len(boxes[0])
        row["onnx"] += len(boxes[1])
        row["matched"] += len(rows)
        if len(rows):
            note("score", float((scores[0][rows] - scores[1][partners]).abs().max()))
            note("box", float((boxes[0][rows] - boxes[1][partners]).abs().max()))
        for a, b in zip(rows.tolist(), partners.tolist(), strict=True) if one.masks is not None else ():
            union = (one.masks[a] | other.masks[b]).sum()
            note("mask_iou", float((one.masks[a] & other.masks[b]).sum() / union) if union else 1.0, least=True)
        if one.semantic is not None:
            note("equal_pixels", float((one.semantic == other.semantic).mean()), least=True)
        if one.heatmap is not None:
            note("heat", float(np.abs(one.heatmap - other.heatmap).max()))
        if one.image_scores is not None:
            note("score", float(np.abs(one.image_scores - other.image_scores).max()))
    kept = row["detections"] == row["onnx"] == row["matched"]
    kept = kept and worst.get("score", 0) <= 1e-3 and worst.get("mask_iou", 1) >= 0.99
    row["bounds"] = "yes" if kept and worst.get("equal_pixels", 1) >= 0.999 else "no"
    return row | {name: float(f"{value:.3g}" if value < 0.5 else f"{value:.6f}") for name, value in worst.items()}


def timed(function, *arguments):
    """Return the result of a call, and its seconds."""
    start = time.perf_counter()
    return function(*arguments), round(time.perf_counter() - start, 1)


def pick(folders: list[str], number: int, side: int) -> list[np.ndarray]:
    """Return the same number of images of each folder, evenly spaced, no side larger than `side`; some mirrored too."""
    import cv2

    from visionattn.io.images import read_image

    images = []
    for index, folder in enumerate(folders):
        files = [source.path for source in find_inputs([folder])]
        count = number // len(folders) + (index < number % len(folders))
        for file in files[:: max(1, len(files) // count)][:count]:
            image = read_image(file, 1 << 28)
            scale = min(1.0, side / max(image.shape[:2]))
            images.append(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return images + [np.ascontiguousarray(image[:, ::-1]) for image in images[:2]]  # share batches with those


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    names = [
        "model",
        "images",
        "detections: PyTorch, file, same",
        "score",
        "mask IoU",
        "equal pixels",
        "heat",
        "bounds",
    ]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        found = f"{row['detections']}, {row['onnx']}, {row['matched']}" if int(row["detections"]) else ""
        cells = [row["head"], row["images"], found, *(row[n] for n in ("score", "mask_iou", "equal_pixels", "heat"))]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['bounds']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="folders of images, of which equally many are used")
    parser.add_argument("--heads", nargs="+", choices=[*CONFIGS, *TRAINED], default=[*CONFIGS, *TRAINED])
    parser.add_argument("--number", type=int, default=20, help="number of images")
    parser.add_argument("--max-side", type=int, default=256, help="larger images are reduced to this side")
    parser.add_argument("--score-thr", type=float, default=0.1)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 192), help="height and width of the traced image")
    parser.add_argument("--keep", metavar="DIR", help="folder for the .onnx files")
    parser.add_argument("--out", default="benchmarks/results/export_outputs.csv")
    parser.add_argument("--docs", metavar="FILE", help="write the table into this file")
    args = parser.parse_args()
    import visionattn.openmmlab  # noqa: F401  adds the jobs
    from visionattn.engine.compat import install
    from visionattn.engine.model import load_model
    from visionattn.inference import Predictor
    from visionattn.inference.export import export_model, network_of_model
    from visionattn.zoo import find_model

    install()
    images = pick(args.images, args.number, args.max_side)
    out = Path(args.out)
    rows = {row["head"]: row for row in csv.DictReader(out.open())} if out.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for head in args.heads:
            model = find_model(head) if head in TRAINED else None
            loaded = load_model(model.config, model.weights) if model else build(head, images[0])
            path = Path(args.keep or folder, f"{head}.onnx")
            _, spent = timed(export_model, network_of_model(loaded), path, tuple(args.size), 1, 3, ("batch", "size"))
            common = {"score_thr": args.score_thr}
            expected, torch_s = timed(Predictor.from_model(loaded, batch_size=4, **common), images)
            program = Predictor.from_onnx(path, batch_size=4, **common)
            batched, onnx_s = timed(program, images)
            alone = Predictor.from_onnx(path, batch_size=1, **common)(images)
            row = compare([*expected, *expected], [*batched, *alone]) | {"images": len(images)}
            row |= {"head": head, "torch_s": torch_s, "onnx_s": onnx_s, "export_s": spent}
            row["mib"] = round(path.stat().st_size / 2**20, 1)
            print({key: value for key, value in row.items() if value != ""}, flush=True)
            rows[head] = row
            with out.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows[name] for name in (*CONFIGS, *TRAINED) if name in rows)
    if args.docs:
        target = Path(args.docs)
        before, rest = target.read_text(encoding="utf-8").split(BEGIN)
        ordered = [rows[name] for name in (*CONFIGS, *TRAINED) if name in rows]
        target.write_text(before + BEGIN + table(ordered) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
