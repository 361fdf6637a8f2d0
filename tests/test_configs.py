"""Every config in configs/: builds its model, trains a step, validates, and predicts, on tiny data."""

import ast
import json
from pathlib import Path

import pytest

from visionattn.cli import main
from visionattn.data.samples import build_digit_scenes

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return build_digit_scenes(tmp_path_factory.mktemp("digits") / "samples", train=8, test=2, size=128)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_config_trains_and_predicts(file, digits, tmp_path, capsys):
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
