"""Image labels in folders of classes, through `custom_data`."""

import cv2
import numpy as np
import pytest

pytest.importorskip("mmdet")

from fixtures.paths import REPO

from visionattn.engine.config.class_names import follow_checkpoint
from visionattn.engine.config.data_checks import check_data
from visionattn.engine.config.load import load_config
from visionattn.engine.registry import METRICS
from visionattn.errors import ConfigError, DataError
from visionattn.heads.localization.mmlab_data import LocalizationDataset

CONFIG = REPO / "configs/localization/cam_dinat-pico_folders_custom.py"


@pytest.fixture
def folders(tmp_path):
    """{train,val}/{cat,dog} with two images each, and boxes of the validation images."""
    for split in ("train", "val"):
        rows = []
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                cv2.imwrite(str(tmp_path / split / name / f"{number}.png"), np.full((20, 30, 3), 90, np.uint8))
                rows.append(f"{name}/{number}.png,1,2,9,9")
    (tmp_path / "val" / "boxes.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def resolved(folders, **options):
    return load_config(CONFIG, {"custom_data.root": str(folders), **options})


def test_everything_is_filled_in(folders):
    config = resolved(folders)
    assert config.custom_data.classes == ["cat", "dog"]
    assert config.model.num_classes == 2
    assert config.test_dataloader.dataset.boxes == config.val_dataloader.dataset.boxes == str(folders / "val/boxes.csv")
    assert check_data(config) == ["train: 4 images, 0 with boxes or masks", "val: 4 images, 4 with boxes or masks"]
    (folders / "images").mkdir()
    for split in ("train", "val"):
        (folders / split).rename(folders / "images" / split)
    (folders / "images/test/dog").mkdir(parents=True)
    (folders / "images/val/dog/1.png").rename(folders / "images/test/dog/1.png")
    (folders / "images/val/boxes.csv").unlink()
    config = resolved(folders, **{"custom_data.classes": ["dog", "cat"]})
    assert check_data(config, ("train", "val", "test"))[1:] == [
        "val: 3 images, 0 with boxes or masks", "test: 1 image, 0 with boxes or masks; none of cat",
    ]  # fmt: skip
    built = LocalizationDataset(
        **{k: v for k, v in config.train_dataloader.dataset.items() if k in ("data_prefix", "metainfo")}
    )
    assert [built.get_data_info(i)["gt_label"] for i in (0, 3)] == [0, 1]
    assert "dog" in built.get_data_info(0)["img_path"]


def test_labels_follow_a_checkpoint(folders):
    config = resolved(folders)
    follow_checkpoint(config, ["dog", "cat"], ("train", "val"), "x.pth")
    assert config.val_dataloader.dataset.metainfo.classes == ("dog", "cat")
    config.val_dataloader.dataset.update(ann_file="metadata", metainfo={"classes": ("cat", "dog")})
    with pytest.raises(ConfigError, match="numbers them as"):
        follow_checkpoint(config, ["dog", "cat"], ("val",), "x.pth")


def test_boxes_that_are_missing(folders):
    boxes = folders / "val" / "boxes.csv"
    boxes.write_text("cat/0.png,1,2,9,9\n")
    with pytest.raises(DataError, match=r"boxes\.csv: has no box for 'cat/1\.png'"):
        check_data(resolved(folders))
    boxes.write_text("".join(f"{name}/{number}.png,1,2,99,9\n" for name in ("cat", "dog") for number in range(2)))
    with pytest.raises(DataError, match=r"0\.png: the box 1 2 99 9 exceeds its 30 x 20 pixels \(and 3 more\)"):
        check_data(resolved(folders))
    with pytest.raises(DataError, match=r"custom_data\.val_boxes: .*no\.csv does not exist"):
        resolved(folders, **{"custom_data.val_boxes": "no.csv"})


def test_what_the_evaluators_need(folders):
    config = resolved(folders)
    config.val_evaluator.centre_from = str(folders / "metadata")
    with pytest.raises(DataError, match="metadata: folder of localization metadata not found"):
        check_data(config)
    (folders / "val" / "boxes.csv").unlink()
    config = resolved(folders)
    config.val_evaluator = [{"type": "visionattn.SATLocalizationMetric"}]
    with pytest.raises(DataError, match="has no box, as 4 of 4 images, but SATLocalizationMetric needs boxes"):
        check_data(config)


def test_centered_boxes_are_chosen_on_the_training_images(folders, tmp_path):
    assert resolved(folders).val_evaluator.centre_from is None
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(2)]
    # the same share of each image: 12 of 30 columns, 16 of 20 rows
    (folders / "train/boxes.csv").write_text("".join(f"{name},9,2,20,17\n" for name in names))
    (folders / "val/boxes.csv").write_text(
        "".join(f"{name},9,2,20,17\n" for name in names[:3]) + f"{names[3]},0,0,5,5\n"
    )
    config = resolved(folders)
    assert config.val_evaluator.centre_from == config.test_evaluator.centre_from == str(folders / "train")
    check_data(config)
    metric = METRICS.build(config.val_evaluator)
    infos = LocalizationDataset(**{k: v for k, v in config.val_dataloader.dataset.items()
                                   if k not in ("type", "pipeline")})  # fmt: skip
    samples = [
        {"true_map": np.ones((7, 7)), "pred_scores": np.array([1.0, 0.0]), "gt_label": info["gt_label"],
         "true_boxes": info["true_boxes"], "ori_shape": (20, 30)}
        for info in map(infos.get_data_info, range(4))
    ]  # fmt: skip
    metric.process(None, samples)
    assert metric.compute_metrics(metric.results)["CentreBoxV2"] == 75


def test_folders_that_are_missing(folders, tmp_path):
    (folders / "val" / "bird").mkdir()
    with pytest.raises(DataError, match="its folder 'bird' is not one of the classes cat, dog"):
        check_data(resolved(folders))
    with pytest.raises(ConfigError, match=r"custom_data\.root is not set"):
        load_config(CONFIG)
    with pytest.raises(DataError, match=r"has no folder train or training .*set custom_data\.train_img"):
        resolved(folders / "val")
    with pytest.raises(DataError, match=r"custom_data\.train_img: .* is not a folder"):
        resolved(folders, **{"custom_data.train_img": "nowhere"})
    with pytest.raises(ConfigError, match="`metainfo` must have `classes`"):
        LocalizationDataset(data_prefix={"img_path": str(folders / "train")})
