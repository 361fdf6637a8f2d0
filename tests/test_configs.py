"""Every config in configs/: builds its model, trains a step on data from its own pipeline, and is measured, all tiny.

Of published configs that differ in the size of the backbone only, the smallest is trained; the others are compared with
it and checked.

The published configs are shrunk by `shrink`, and by that alone: random weights, one block per level, images and crops
an eighth in size, few proposals. Widths, necks, heads, optimizers and pipelines stay as they are.
"""

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("mmdet")

from mmengine.evaluator import Evaluator
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope, init_default_scope
from mmengine.runner import Runner

from visionattn.cli import main
from visionattn.data.cityscapes import convert_cityscapes
from visionattn.data.digits import build_digit_scenes
from visionattn.data.panoptic import id2rgb
from visionattn.engine.compat import install
from visionattn.engine.config.build import quiet
from visionattn.engine.config.checks import find_problems
from visionattn.engine.config.data_checks import check_data
from visionattn.engine.config.load import load_config

install()  # panopticapi

CONFIGS = REPO / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)
# These have test files of their own.
JOBS = {"bev", "forgery", "localization", "pose", "super_resolution"}
OTHERS = [path for path in FILES if JOBS & set(path.relative_to(CONFIGS).parts)]
MASKS = [path for path in FILES if path.stem.startswith("semantic-fpn") and path.stem.endswith(("_custom", "_camvid"))]
CUSTOM = [path for path in FILES if "custom_data" in path.read_text() and path not in MASKS + OTHERS]
PUBLISHED = [path for path in FILES if path not in CUSTOM + MASKS + OTHERS]
SIZES = ("mini", "tiny", "small", "base", "large")
HEIGHT, WIDTH = 96, 128


def size_of(file: Path) -> int:
    return next((number for number, size in enumerate(SIZES) if f"-{size}_" in file.stem), 0)


def without_size(file: Path) -> str:
    return file.stem.replace(f"-{SIZES[size_of(file)]}_", "_")


SMALLEST: dict[str, Path] = {}
for published in sorted(PUBLISHED, key=size_of):
    SMALLEST.setdefault(without_size(published), published)
LARGER = [path for path in PUBLISHED if path not in SMALLEST.values()]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return build_digit_scenes(tmp_path_factory.mktemp("digits") / "samples", train=8, test=2, size=128)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which data/coco, data/ade20k and data/cityscapes are as `visionattn data` describes them."""
    from mmdet.datasets import ADE20KInstanceDataset, ADE20KPanopticDataset, CocoDataset, CocoPanopticDataset

    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    coco, ade = home / "data/coco", home / "data/ade20k/ADEChallengeData2016"
    categories = [{"id": i, "name": name} for i, name in enumerate(CocoDataset.METAINFO["classes"], 1)]
    (coco / "annotations").mkdir(parents=True)
    for split, ade_split in (("train2017", "training"), ("val2017", "validation")):
        images, annotations = [], []
        for folder in (coco / split, ade / "images" / ade_split, ade / "annotations" / ade_split):
            folder.mkdir(parents=True)
        for number in (1, 2):
            picture = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            cv2.imwrite(str(coco / split / f"{number}.jpg"), picture)
            cv2.imwrite(str(ade / "images" / ade_split / f"{number}.jpg"), picture)
            labels = np.repeat(np.repeat(rng.integers(0, 151, (6, 8), dtype=np.uint8), 16, 0), 16, 1)
            cv2.imwrite(str(ade / "annotations" / ade_split / f"{number}.png"), labels)
            images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
            for x, y, w, h in ((8, 8, 48, 40), (40, 24, 80, 64)):
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "category_id": int(rng.integers(1, 81)),
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [outline],
                })  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        content["categories"] = categories_of(ADE20KInstanceDataset)
        ade_name = ade_split.replace("training", "train").replace("validation", "val")
        (ade / f"ade20k_instance_{ade_name}.json").write_text(json.dumps(content))
        write_panoptic(coco / "annotations" / f"panoptic_{split}", images, categories_of(CocoPanopticDataset))
        write_panoptic(ade / f"ade20k_panoptic_{ade_name}", images, categories_of(ADE20KPanopticDataset))
    write_cityscapes(home / "data/cityscapes")
    for split in ("train", "val"):
        for folder, source in (("images", coco / f"{split}2017"), ("annotations", ade / "annotations" / ade_split)):
            (home / "data/camvid" / folder).mkdir(parents=True, exist_ok=True)
            target = shutil.copytree(source, home / "data/camvid" / folder / split)
            for file in target.glob("*.png"):
                cv2.imwrite(str(file), cv2.imread(str(file), cv2.IMREAD_UNCHANGED) % 11)
    return home


def categories_of(dataset: type) -> list[dict]:
    things = dataset.METAINFO.get("thing_classes", ())
    return [{"id": i, "name": n, "isthing": int(n in things)} for i, n in enumerate(dataset.METAINFO["classes"], 1)]


def write_panoptic(folder: Path, images: list[dict], categories: list[dict]) -> None:
    """Two things and two stuffs an image, and some void."""
    folder.mkdir()
    stuff = next(c["id"] for c in categories if not c["isthing"])
    kinds = {1000: (1, 8, 8, 48, 40), 2000: (2, 60, 20, 50, 50), 70000: (stuff, 0, 0, 128, 12),
             80000: (stuff + 1, 0, 72, 128, 24)}  # fmt: skip
    annotations = []
    for image in images:
        ids, segments = np.zeros((HEIGHT, WIDTH), np.int64), []
        for number, (category, x, y, w, h) in reversed(kinds.items()):
            ids[y : y + h, x : x + w] = number
            box = {"bbox": [x, y, w, h], "area": w * h}
            segments.append({"id": number, "category_id": category, "iscrowd": 0, **box})
        name = Path(image["file_name"]).with_suffix(".png").name
        cv2.imwrite(str(folder / name), id2rgb(ids)[..., ::-1])
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": categories}
    folder.with_suffix(".json").write_text(json.dumps(content))


def write_cityscapes(root: Path) -> None:
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        for folder in (root / "leftImg8bit" / split / "bonn", root / "gtFine" / split / "bonn"):
            folder.mkdir(parents=True)
        for number in range(2):
            stem = f"bonn_{number:06d}_000019"
            picture = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            cv2.imwrite(str(root / "leftImg8bit" / split / "bonn" / f"{stem}_leftImg8bit.png"), picture)
            ids = np.repeat(np.repeat(rng.choice([7, 11, 23], (6, 8)), 16, 0), 16, 1).astype(np.uint16)
            ids[10:50, 10:60] = 26001
            ids[30:90, 70:120] = 24005
            cv2.imwrite(str(root / "gtFine" / split / "bonn" / f"{stem}_gtFine_instanceIds.png"), ids)
    convert_cityscapes(root)


def dicts(part: Any) -> Iterator[dict]:
    """Every dict in a config, from the outside in."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from dicts(item)


def starts_from_imagenet(backbone: dict) -> bool:
    """Published schedules do: from weights that timm downloads, or with new modules from the authors' file."""
    given = backbone["pretrained"]
    return given is True or ("plugins" in backbone and given.endswith("_max_acc.pth"))


def eighth(size: Any) -> Any:
    return type(size)(map(eighth, size)) if isinstance(size, (list, tuple)) else size // 8


def shrink(config: Any) -> None:
    """One block per level, no pretrained weights, small images, few proposals and queries."""
    backbone = config.model.backbone
    backbone.update(pretrained=None, depths=(1, 1, 1, 1))
    if "num_regions" in backbone:
        backbone.num_regions = 4
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        for step in dicts(loader.dataset.pipeline):
            for key in ("scale", "scales", "crop_size"):
                if key in step:
                    step[key] = eighth(step[key])
    for part in dicts(config.model):
        if part.get("type") == "RandomSampler":
            part["num"] = 32
        if "nms_pre" in part:
            part["nms_pre"] = 100
        if "max_per_img" in part:
            part["max_per_img"] = min(part["max_per_img"], 50)
    if config.model.type == "DINO":
        config.model.num_queries = 20
        config.model.encoder.num_layers = config.model.decoder.num_layers = 1
    for head in (config.model.get("panoptic_head"), config.model.get("decode_head")):
        if head and head.type == "Mask2FormerHead":
            head.num_queries = 20
            head.pixel_decoder.encoder.num_layers = head.transformer_decoder.num_layers = 1
            config.model.test_cfg.pop("max_per_image", None)
            for part in dicts(config.model):
                if "num_points" in part and "assigner" in part:
                    part["num_points"] = 256


def values_of(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config with its dotted path."""
    if isinstance(part, (dict, list, tuple)):
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            yield from values_of(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, part


@pytest.mark.parametrize("file", LARGER, ids=lambda path: path.stem)
def test_larger_backbone_in_a_published_config(file, home, monkeypatch):
    monkeypatch.chdir(home)
    config, smaller = load_config(file), load_config(SMALLEST[without_size(file)])
    values, others = (dict(values_of(part.to_dict())) for part in (config, smaller))
    changed = {key for key in values.keys() | others.keys() if values.get(key) != others.get(key)}
    allowed = ("model.backbone.", "optim_wrapper.optimizer.lr")
    assert {key for key in changed if not key.startswith(allowed) and "in_channels" not in key} == set()
    assert starts_from_imagenet(config.model.backbone)
    assert find_problems(config) == []
    for key in sorted(key for key in changed if "in_channels" in key):
        assert find_problems(load_config(file, {key: values[key] + 1})) != [], f"{key} is checked against the backbone"


@pytest.mark.parametrize("file", SMALLEST.values(), ids=lambda path: path.stem)
def test_published_config_trains_and_predicts(file, home, monkeypatch):
    monkeypatch.chdir(home)
    torch.manual_seed(0)
    config = load_config(file)
    full = config.to_dict()["model"]["backbone"]
    if full["model_name"] != "dinat_pico":
        assert starts_from_imagenet(full)
    if "panoptic" in file.stem:
        assert len(check_data(config)) == 2
    shrink(config)
    init_default_scope(config.default_scope)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        train = Runner.build_dataloader(config.train_dataloader, seed=0)
        val = Runner.build_dataloader(config.val_dataloader, seed=0)
        model = revert_sync_batchnorm(MODELS.build(config.model))
        optim = build_optim_wrapper(model, config.optim_wrapper)
        for scheduler in config.param_scheduler:
            PARAM_SCHEDULERS.build(dict(scheduler), default_args={"optimizer": optim})
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 1}
        decay = {id(p): group["weight_decay"] for group in optim.param_groups for p in group["params"]}
        if config.optim_wrapper.get("paramwise_cfg"):
            kept = [n for n, p in model.backbone.named_parameters() if "norm" in n or n.endswith("rpb")]
            own = dict(model.backbone.named_parameters())
            assert kept
            assert {decay[id(own[n])] for n in kept} == {0.0}
        for group in optim.param_groups:
            group["lr"] = 1e-3  # the warm-up's first rate is too small to see
        model.train()
        losses = model.train_step(next(iter(train)), optim)
        assert all(torch.isfinite(value).all() for value in losses.values())
        after = dict(model.named_parameters())
        assert any(n.startswith("backbone") and not torch.equal(v, after[n]) for n, v in before.items())
        model.eval()
        evaluator = Evaluator(config.val_evaluator)
        evaluator.dataset_meta = val.dataset.metainfo
        with torch.no_grad():
            batch = next(iter(val))
            evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
        evaluator.evaluate(len(val.dataset))


@pytest.mark.parametrize("file", CUSTOM, ids=lambda path: path.stem)
def test_custom_config_trains_and_predicts(file, digits, tmp_path, capsys):
    options = [
        f"custom_data.root={digits}",
        "custom_data.train_ann=instances_train.json",
        "custom_data.val_ann=instances_test.json",
        "custom_data.train_img=images/train",
        "custom_data.val_img=images/test",
        "train_cfg.max_iters=1",
        "train_cfg.val_interval=1",
        "train_dataloader.batch_size=2",
    ]
    run = tmp_path / "run"
    status = main(["train", str(file), "--work-dir", str(run), "--cfg-options", *options])
    assert status == 0, capsys.readouterr().err
    images = sorted((digits / "images" / "test").iterdir())
    out = tmp_path / "out"
    status = main(["infer", *map(str, images), "--run", str(run), "--out", str(out), "--score-thr", "0"])
    assert status == 0, capsys.readouterr().err
    content = json.loads((out / "predictions.json").read_text())
    assert len(content["images"]) == len(images)


@pytest.fixture(scope="module")
def mask_folders(tmp_path_factory) -> Path:
    """Images with index masks of 11 classes, as `visionattn data camvid` lays them out."""
    root = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for part, suffix in (("images", "jpg"), ("annotations", "png")):
            (root / part / split).mkdir(parents=True)
            for number in range(2):
                high, channels = (255, (3,)) if part == "images" else (11, ())
                blocks = rng.integers(0, high, (6, 8, *channels), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
                cv2.imwrite(str(root / part / split / f"{number}.{suffix}"), blocks)
    (root / "classes.json").write_text(json.dumps({"names": [f"class {i}" for i in range(11)]}))
    return root


@pytest.mark.parametrize("file", MASKS, ids=lambda path: path.stem)
def test_mask_config_trains_and_predicts(file, mask_folders, tmp_path, capsys):
    options = ["train_cfg.max_iters=1", "train_cfg.val_interval=1", "train_dataloader.batch_size=2"]
    run, out = tmp_path / "run", tmp_path / "out"
    options += [f"custom_data.root={mask_folders}", "default_hooks.logger.interval=1"]
    status = main(["train", str(file), "--work-dir", str(run), "--cfg-options", *options])
    assert status == 0, capsys.readouterr().err
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(records[0]["loss"])
    assert {"aAcc", "mIoU", "mAcc"} <= set(records[-1]["val"])
    assert (
        main(["browse", str(run / file.name), "--number", "1", "--out", str(tmp_path / "seen"), "--split", "val"]) == 0
    )
    seen = [cv2.imread(str(path)).shape for path in (tmp_path / "seen").glob("*.png")]
    width, height = load_config(run / file.name).scale
    assert seen == [(height, width, 3)], "the map is drawn at the size of the image that the model sees"
    assert main(["test", str(run)]) == 0, capsys.readouterr().err
    tested = json.loads((run / "test" / "results.json").read_text())
    assert tested["metrics"]["mIoU"] == pytest.approx(records[-1]["val"]["mIoU"])
    classes = tested["per_class"]["semantic"]
    assert list(classes) == [f"class {i}" for i in range(11)]
    measured = [row["IoU"] for row in classes.values() if row["IoU"] >= 0]
    assert np.mean(measured) == pytest.approx(tested["metrics"]["mIoU"], abs=0.01)
    status = main(["infer", str(mask_folders / "images/val"), "--run", str(run), "--out", str(out)])
    assert status == 0, capsys.readouterr().err
    images = json.loads((out / "predictions.json").read_text())["images"]
    assert len(images) == 2
    assert all(sum(image["pixel_shares"].values()) == pytest.approx(1, abs=1e-3) for image in images)
    assert cv2.imread(str(out / "maps/0.png"), cv2.IMREAD_UNCHANGED).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_config_is_at_most_two_hops_deep(file):
    def depth(path: Path) -> int:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "_base_":
                bases = ast.literal_eval(node.value)
                bases = [bases] if isinstance(bases, str) else bases
                return 1 + max(depth((path.parent / base).resolve()) for base in bases)
        return 0

    assert depth(file) <= 2
