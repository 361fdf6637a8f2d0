"""Images and index masks as a dataset of mmseg."""

import numpy as np
import pytest

pytest.importorskip("mmseg")

from PIL import Image

import visionattn.openmmlab  # noqa: F401
from visionattn.data.convert import CAMVID_CLASSES, convert_camvid
from visionattn.engine.config.data_checks import check_data
from visionattn.engine.config.load import load_config
from visionattn.engine.parts.datasets import MaskFolderDataset
from visionattn.engine.registry import DATASETS
from visionattn.errors import DataError

STEPS = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
CAMVID = "configs/segmentation/semantic_fpn/semantic-fpn_dinat-pico_camvid.py"


def test_images_and_masks_as_they_are(tmp_path):
    from mmengine.registry import DefaultScope

    rng = np.random.default_rng(0)
    for name in ("b.png", "a.jpg"):
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (6, 5, 3), np.uint8)).save(tmp_path / "images" / name)
    masks = {name: rng.integers(0, 3, (6, 5), np.uint8) for name in ("a", "b")}
    masks["a"][0] = 255
    for name, mask in masks.items():
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}_m.png")
    given = {
        "type": "visionattn.MaskFolderDataset",
        "data_root": str(tmp_path),
        "data_prefix": {"img_path": "images", "seg_map_path": "masks"},
        "metainfo": {"classes": ("x", "y", "z")},
        "pipeline": STEPS,
        "seg_map_suffix": "_m.png",
    }
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build(given)
        assert isinstance(dataset, MaskFolderDataset)
        assert len(dataset) == 2
        for index, name in enumerate(("a", "b")):
            packed = dataset[index]
            np.testing.assert_array_equal(packed["data_samples"].gt_sem_seg.data[0].numpy(), masks[name])
            assert packed["inputs"].shape == (3, 6, 5)
        (tmp_path / "masks/a_m.png").unlink()
        with pytest.raises(DataError, match=r"a\.jpg: has no mask"):
            DATASETS.build(given)


def test_camvid_as_the_data_command_writes_it(tmp_path):
    """The 11 classes of the converter are those whose weights the config has, in their order."""
    source = tmp_path / "source"
    for split in ("train", "val"):
        lines = []
        for part in (split, f"{split}annot"):
            (source / part).mkdir(parents=True)
        for number in range(12):
            name = f"{number}.png"
            Image.fromarray(np.full((12, 16, 3), number, np.uint8)).save(source / split / name)
            Image.fromarray(np.full((12, 16), number, np.uint8)).save(source / f"{split}annot" / name)
            lines.append(f"/x/{split}/{name} /x/{split}annot/{name}\n")
        (source / f"{split}.txt").write_text("".join(lines))
    (tmp_path / "out").mkdir()
    convert_camvid(source, tmp_path / "out")
    config = load_config(CAMVID, [f"custom_data.root={tmp_path / 'out'}"])
    assert tuple(config.val_dataloader.dataset.metainfo.classes) == tuple(CAMVID_CLASSES)
    assert len(config.model.decode_head.loss_decode.class_weight) == config.model.decode_head.num_classes == 11
    assert check_data(config) == [f"{s}: 12 images, 11 of 11 classes in their masks" for s in ("train", "val")]


def test_weights_of_the_camvid_config(shared_dir):
    """They are one over the root of each class's share, with a mean of 1 over the training pixels."""
    import json

    root = shared_dir / "data" / "camvid"
    content = json.loads((root / "classes.json").read_text())
    pixels = np.array([content["pixel_counts"]["train"][name] for name in content["names"]], np.float64)
    weights = (pixels.sum() / pixels) ** 0.5
    weights /= (weights * pixels).sum() / pixels.sum()
    config = load_config(CAMVID, [f"custom_data.root={root}"])
    np.testing.assert_allclose(config.model.decode_head.loss_decode.class_weight, weights, atol=0.006)
    assert list(config.val_dataloader.dataset.metainfo.classes) == content["names"] == list(CAMVID_CLASSES)
