"""Every config of point clouds builds its model, trains a step on data in its layout, and is measured, all tiny."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fixtures.paths import REPO

pytest.importorskip("mmdet")

from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope, init_default_scope
from mmengine.runner import Runner

from visionattn.cli import main
from visionattn.engine.config.build import quiet
from visionattn.engine.config.checks import find_problems
from visionattn.engine.config.load import load_config

CONFIGS = REPO / "configs" / "bev"
FILES = sorted(CONFIGS.rglob("*.py"))
SIZES = {"car": (4.0, 1.8, 1.5), "pedestrian": (0.8, 0.6, 1.7), "cyclist": (1.8, 0.6, 1.7)}


def scan(columns=4, ahead=6.0):
    """Points ``[N, columns]`` of ground and one object of each size, and the boxes."""
    rng = np.random.default_rng(0)
    parts, boxes = [np.concatenate([rng.uniform((0, -8), (14, 8), (300, 2)), rng.normal(-1.7, 0.02, (300, 1))], 1)], {}
    for number, (name, size) in enumerate(SIZES.items()):
        middle = np.array([ahead, 4.0 * (number - 1), -1.7 + size[2] / 2])
        parts.append(rng.uniform(-0.5, 0.5, (40, 3)) * size + middle)
        boxes[name] = [*map(float, middle), *size, 0.0]
    xyz = np.concatenate(parts)
    return np.concatenate([xyz, np.full((len(xyz), columns - 3), 0.3)], 1).astype(np.float32), boxes


def write_folder(folder: Path, columns: int, names: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    points, boxes = scan(columns)
    for number in range(2):
        points.tofile(folder / f"{number}.bin")
        entries = [{"class": names.get(name, name), "box": box} for name, box in boxes.items()]
        content = {"columns": list("xyziet"[:columns]), "boxes": entries}
        (folder / f"{number}.json").write_text(json.dumps(content))


def write_kitti(root: Path) -> None:
    for name in ("training/velodyne", "training/calib", "training/label_2", "ImageSets"):
        (root / name).mkdir(parents=True)
    points, boxes = scan()
    rows = []
    for name, (x, y, z, *size, _) in boxes.items():
        length, width, height = size
        place = f"{height} {width} {length} {-y} {-(z - height / 2)} {x} {-np.pi / 2}"
        rows.append(f"{name.capitalize()} 0 0 0 500 100 600 200 {place}")
    for number in range(2):
        points.tofile(root / f"training/velodyne/{number:06d}.bin")
        (root / f"training/label_2/{number:06d}.txt").write_text("\n".join(rows))
        (root / f"training/calib/{number:06d}.txt").write_text(
            "P2: 300 0 600 0 0 300 180 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0"
        )
    for split in ("train", "val"):
        (root / f"ImageSets/{split}.txt").write_text("000000\n000001\n")


def write_nuscenes(root: Path) -> None:
    (root / "samples/LIDAR_TOP").mkdir(parents=True)
    (root / "v1.0-mini").mkdir()
    points, boxes = scan(5)
    points[:, 3] *= 255
    level = {"rotation": [1.0, 0, 0, 0], "translation": [0.0, 0, 0]}
    turned = points.copy()
    turned[:, 0], turned[:, 1] = -points[:, 1], points[:, 0]  # x right, y forward
    kinds = {"car": "vehicle.car", "pedestrian": "human.pedestrian.adult", "cyclist": "vehicle.bicycle"}
    tables = {
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP"}],
        "calibrated_sensor": [{"token": "mount", "sensor_token": "lidar", **level}],
        "scene": [{"token": "scene", "name": "scene-0001"}],
        "category": [{"token": name, "name": kind} for name, kind in kinds.items()],
        "instance": [{"token": name, "category_token": name} for name in kinds],
        "ego_pose": [{"token": "pose", "timestamp": 0, **level}],
        "sample": [], "sample_data": [], "sample_annotation": [],
    }  # fmt: skip
    for number in range(2):
        name = f"samples/LIDAR_TOP/{number}.pcd.bin"
        turned.tofile(root / name)
        tables["sample"].append({"token": f"s{number}", "timestamp": number * 500000, "scene_token": "scene"})
        tables["sample_data"].append({
            "token": f"d{number}", "sample_token": f"s{number}", "ego_pose_token": "pose", "prev": "", "next": "",
            "calibrated_sensor_token": "mount", "filename": name, "is_key_frame": True, "timestamp": number * 500000,
        })  # fmt: skip
        for thing, (x, y, z, length, width, height, _) in boxes.items():
            half = 0.5**0.5
            tables["sample_annotation"].append({
                "token": f"{thing}{number}", "sample_token": f"s{number}", "instance_token": thing,
                "translation": [-y, x, z], "size": [width, length, height], "rotation": [half, 0, 0, half],
                "num_lidar_pts": 40, "num_radar_pts": 0, "prev": f"{thing}0" if number else "",
                "next": "" if number else f"{thing}1",
            })  # fmt: skip
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    for split in ("train", "val"):
        (root / f"{split}_scenes.txt").write_text("scene-0001\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which data/ is as the configs say."""
    home = tmp_path_factory.mktemp("home")
    data = home / "data"
    for split in ("train", "val"):
        write_folder(data / "lidar-samples" / split, 4, {})
        write_folder(data / "waymo" / split, 5, {"car": "vehicle"})
    (data / "waymo/manifest.json").write_text(json.dumps({"classes": ["vehicle", "pedestrian", "cyclist"]}))
    write_kitti(data / "kitti")
    write_nuscenes(data / "nuscenes")
    for layout, name, split in (
        ("folder", "waymo", "train"), ("kitti", "kitti", "train"),
        ("nuscenes", "nuscenes", str(data / "nuscenes/train_scenes.txt")),
    ):  # fmt: skip
        source = data / name
        arguments = [
            "--layout",
            layout,
            "--source",
            str(source),
            "--split",
            split,
            "--out",
            str(source / "objects.npz"),
        ]
        assert main(["data", "objects", *arguments]) == 0
    return home


def shrink(config) -> None:
    """A range of 32 x 32 voxels around the objects, one unit of the neck."""
    low, size = config.model.point_cloud_range, config.model.voxel_size
    near = [0.0, -16 * size[1], low[2], 32 * size[0], 16 * size[1], low[5]]
    if config.model.get("x_right"):  # the range is symmetric
        near = [-32 * size[0], -32 * size[1], low[2], 32 * size[0], 32 * size[1], low[5]]
    config.model.point_cloud_range = near
    config.model.neck.num_units = 1
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        # what would turn the objects out of the range
        turning = ("PointFlip", "PointRotation")
        loader.dataset.pipeline = [s for s in loader.dataset.pipeline if not str(s["type"]).endswith(turning)]
        for step in loader.dataset.pipeline:
            if "PointRangeFilter" in step["type"]:
                step["point_cloud_range"] = near


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_config_trains_and_is_measured(file, home, monkeypatch, pillars):
    monkeypatch.chdir(home)
    torch.manual_seed(0)
    np.random.seed(0)
    config = load_config(file)
    shrink(config)
    if not timm.is_model("scatterformer_waymo"):
        columns = config.model.voxel_encoder.in_channels
        config.model.voxel_encoder = dict(type="visionattn.PlainEncoder")
        config.model.backbone = dict(
            type="visionattn.PlainBackbone", channels=config.model.neck.in_channels, in_channels=columns + 1
        )
    assert find_problems(config) == []
    init_default_scope(config.default_scope)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        train = Runner.build_dataloader(config.train_dataloader, seed=0)
        val = Runner.build_dataloader(config.val_dataloader, seed=0)
        model = MODELS.build(config.model)
        optim = build_optim_wrapper(model, config.optim_wrapper)
        model.train()
        losses = model.train_step(next(iter(train)), optim)
        assert {"loss_heatmap", "loss_bbox", "loss_iou", "loss_diou"} <= set(losses)
        assert all(torch.isfinite(v).all() for v in losses.values())
        assert losses["loss_bbox"] > 0
        model.eval()
        evaluator = Evaluator(config.test_evaluator)
        evaluator.dataset_meta = val.dataset.metainfo
        for batch in val:
            assert all(len(sample.gt_instances) == 3 for sample in batch["data_samples"])
            with torch.no_grad():
                evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
    figures = evaluator.evaluate(len(val.dataset))
    assert any(name.startswith("mAP") for name in figures)
    if "nuscenes" in file.stem:
        assert 0 <= figures["NDS"] <= 100
        assert set(json.loads(Path("results_nusc.json").read_text())["results"]) == {"s0", "s1"}
    if "waymo" in file.stem:
        assert {"mAP_L1", "mAPH_L2"} <= set(figures)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_pasting_ends_and_the_rate_goes_up_and_down(file, home, monkeypatch):
    monkeypatch.chdir(home)
    config = load_config(file)
    epochs = config.train_cfg.max_epochs
    pastes = any("PasteObjects" in step["type"] for step in config.train_dataloader.dataset.pipeline)
    hooks = config.get("custom_hooks") or []
    assert len(hooks) == pastes
    for hook in hooks:
        assert epochs // 2 < hook["switch_epoch"] < epochs
        assert hook["switch_pipeline"] == config.train_dataloader.dataset.pipeline[1:]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW(
        [parameter], **{k: v for k, v in config.optim_wrapper.optimizer.items() if k != "type"}
    )
    schedulers = []
    for options in config.param_scheduler:
        options = {k: v for k, v in options.items() if k != "convert_to_iter_based"}
        cls = PARAM_SCHEDULERS.get(options.pop("type"))
        schedulers.append(cls.build_iter_from_epoch(optimizer, epoch_length=10, **options))
    rates, betas = [], []
    for _ in range(epochs * 10):
        rates.append(optimizer.param_groups[0]["lr"])
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    top = config.param_scheduler[0]["eta_max"]
    assert max(rates) == pytest.approx(top, rel=1e-3)
    assert rates[0] == pytest.approx(top / config.param_scheduler[0]["div_factor"], rel=0.02)
    assert rates[-1] < top / 1000
    if len(schedulers) > 1:
        assert betas[0] == pytest.approx(0.95)
        assert min(betas) == pytest.approx(0.85, abs=1e-3)
        assert np.argmin(betas) == pytest.approx(np.argmax(rates), abs=2)
        assert betas[-1] == pytest.approx(0.95, abs=1e-3)
