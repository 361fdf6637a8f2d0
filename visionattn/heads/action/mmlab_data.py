"""Dataset and pipeline transforms of action recognition for mmengine."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement

from visionattn.engine.registry import DATASETS, TRANSFORMS
from visionattn.engine.samples import split_dataset
from visionattn.errors import ConfigError, DataError
from visionattn.heads.action.clips import Clip, probe_video, read_frames, sample_indices
from visionattn.heads.action.keypoints import FLIP_PAIRS, FORMATS, JOINTS, read_points
from visionattn.heads.action.lists import read_action_list
from visionattn.heads.action.masks import joint_targets, patch_masks
from visionattn.io.console import count_of

__all__ = ["ActionDataset", "CropClip", "FlipClip", "LoadClip", "PackClip", "ResizeClip", "read_clip_samples"]


@DATASETS.register_module()
class ActionDataset(BaseDataset):
    """Videos with labels and keypoints, from a list with lines ``video,skeleton,label``.

    Args:
        ann_file: the list, relative to ``data_root``.
        data_prefix: ``video`` and ``points``, the folders of the videos and keypoint files.
        separator: field separator of the list.
        metainfo: ``classes``, the class names in the order of the labels. Defaults to the labels as strings.
        **kwargs: passed to mmengine's ``BaseDataset``.

    Raises:
        DataError: if the list is missing or malformed, or has a label outside the classes.
    """

    open_arguments = True

    def __init__(self, ann_file: str, separator: str = ",", **kwargs: Any) -> None:
        self.separator = separator
        kwargs.setdefault("data_prefix", {"video": "", "points": ""})
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Create one record per video."""
        folders = (self.data_prefix.get("video") or "", self.data_prefix.get("points") or "")
        classes = self._metainfo.get("classes")
        items = read_action_list(self.ann_file, *folders, self.separator, len(classes) if classes else None)
        if not classes:
            self._metainfo["classes"] = tuple(str(n) for n in range(max(item.label for item in items) + 1))
        return [
            {
                "video_path": str(item.video),
                "points_path": None if item.points is None else str(item.points),
                "gt_label": item.label,
            }
            for item in items
        ]

    def check(self, steps: Sequence[Mapping[str, Any]] = ()) -> str:
        """Open all videos and read at most 100 keypoint files, and return the number of videos and absent classes.

        Args:
            steps: the pipeline, whose `LoadClip` has the format of the keypoint files.

        Raises:
            DataError: a file is missing or damaged; the message names the first and has the number of others.
        """
        infos = [self.get_data_info(index) for index in range(len(self))]
        problems = [text for text in map(_problem, infos) if text]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}")
        there = {info["gt_label"] for info in infos}
        absent = [name for label, name in enumerate(self.metainfo["classes"]) if label not in there]
        load = next((step for step in steps if str(step.get("type")).endswith("LoadClip")), {})
        posed = [info["points_path"] for info in infos if info["points_path"] is not None and load.get("points", True)]
        read = posed[:: -(-len(posed) // 100)] if posed else []
        blank = [p for p in read if not np.isfinite(read_points(p, load.get("kind"))).any()]
        if blank and len(blank) == len(read):
            raise DataError(f"{blank[0]}: has no point, as all keypoint files that were read")
        line = f"{count_of(len(infos), 'video')}, {len(posed)} with keypoints"
        if blank:
            line += f"; {len(blank)} of {count_of(len(read), 'keypoint file')} without points, such as {blank[0]}"
        return f"{line}; none of {', '.join(absent[:6])}{', ...' if len(absent) > 6 else ''}" if absent else line


def _problem(info: dict[str, Any]) -> str | None:
    try:
        probe_video(info["video_path"])
        if info["points_path"] is not None and not Path(info["points_path"]).is_file():
            return f"{info['points_path']}: the keypoint file does not exist"
    except DataError as error:
        return str(error)
    return None


@TRANSFORMS.register_module()
class LoadClip(BaseTransform):
    """Load one or more clips with keypoints as `Clip` objects under the key ``clips``.

    Args:
        num_frames: number of frames of a clip.
        rate: distance of two sampled frames at 30 fps.
        views: number of clips, evenly spaced over the video; ``"random"`` for one random clip in training.
        points: whether to read keypoints.
        kind: format of the keypoint files, see `visionattn.heads.action.keypoints.read_points`.
        min_score: points with a lower score are treated as missing.
        margin: number of frames excluded at the end of the video.

    Raises:
        ConfigError: if an argument is invalid.
        DataError: if a file cannot be read.
    """

    def __init__(
        self,
        num_frames: int = 8,
        rate: int = 32,
        views: int | str = 1,
        points: bool = True,
        kind: str | None = None,
        min_score: float = 0.0,
        margin: int = 1,
    ) -> None:
        if views != "random" and (not isinstance(views, int) or views < 1):
            raise ConfigError(f"LoadClip: `views` must be 'random' or at least 1, got {views!r}")
        if kind is not None and kind not in FORMATS:
            raise ConfigError(f"LoadClip: `kind` must be one of {', '.join(FORMATS)}, got {kind!r}")
        if num_frames < 1 or rate < 1:
            raise ConfigError(f"LoadClip: `num_frames` and `rate` must be at least 1, got {num_frames} and {rate}")
        self.num_frames, self.rate, self.views, self.points = num_frames, rate, views, points
        self.kind, self.min_score, self.margin = kind, min_score, margin

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read ``video_path`` and ``points_path``; random clips depend on NumPy's global random state."""
        info = probe_video(results["video_path"])
        arguments = (info.frames, info.fps, self.num_frames, self.rate)
        if self.views == "random":
            rng = np.random.default_rng(np.random.randint(2**31))
            chosen = [sample_indices(*arguments, rng=rng, margin=self.margin)]
        else:
            chosen = [
                sample_indices(*arguments, view=view, views=self.views, margin=self.margin)
                for view in range(self.views)
            ]
        frames = read_frames(results["video_path"], np.concatenate(chosen))
        points = self._points(results, info.width, info.height)
        results["clips"] = []
        for view, indices in enumerate(chosen):
            part = frames[view * self.num_frames : (view + 1) * self.num_frames]
            results["clips"].append(Clip(part, None if points is None else _at(points, indices)))
        results["ori_shape"] = (info.height, info.width)
        results["frame_indices"] = [indices.tolist() for indices in chosen]
        return results

    def _points(self, results: dict[str, Any], width: int, height: int) -> np.ndarray | None:
        path = results.get("points_path")
        if not self.points or not path:
            return None
        points = read_points(path, self.kind, min_score=self.min_score)
        if self.kind == "kinetics" or (self.kind is None and Path(path).suffix == ".json" and _within_one(points)):
            points = points * np.array([width, height], np.float32)
        return points


def _within_one(points: np.ndarray) -> bool:
    """Return True if the coordinates are relative to the frame size, that is, none is above 1."""
    known = points[np.isfinite(points)]
    return bool(known.size) and float(known.max()) <= 1.0


def _at(points: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Points at the given frame indices; NaN after the end of the recording."""
    taken = points[np.minimum(indices, len(points) - 1)].copy()
    taken[indices >= len(points)] = np.nan
    return taken


@TRANSFORMS.register_module()
class ResizeClip(BaseTransform):
    """Resize the shorter side of the frames, keeping the aspect ratio.

    Args:
        short: length of the shorter side in pixels, or a range (minimum, maximum) to draw it from.
    """

    def __init__(self, short: int | Sequence[int] = 256) -> None:
        low, high = (short, short) if isinstance(short, int) else tuple(short)
        if not 1 <= low <= high:
            raise ConfigError(f"ResizeClip: `short` must be a length or two ascending lengths, got {short!r}")
        self.low, self.high = low, high

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize all clips to the same size."""
        length = int(np.random.randint(self.low, self.high + 1))
        results["clips"] = [clip.short_side(length) for clip in results["clips"]]
        return results


@TRANSFORMS.register_module()
class CropClip(BaseTransform):
    """Crop a square from each frame.

    Args:
        size: side length of the crop, in pixels.
        where: ``"random"``, ``"center"``, or ``"three"`` for three views at both ends and the center of the longer
            side.

    Raises:
        ConfigError: if an argument is invalid.
        DataError: if the frames are smaller than the crop.
    """

    def __init__(self, size: int = 224, where: str = "center") -> None:
        if where not in ("random", "center", "three") or size < 1:
            raise ConfigError(
                "CropClip: `size` must be at least 1 and `where` one of random, center, three, "
                f"got {size} and {where!r}"
            )
        self.size, self.where = size, where

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Apply the same crop to all clips."""
        height, width = results["clips"][0].size
        rest = height - self.size, width - self.size
        if min(rest) < 0:
            raise DataError(
                f"{results.get('video_path')}: frames of {width} x {height} are smaller than the crop of {self.size}; "
                "resize them first"
            )
        if self.where == "random":
            corners = [tuple(int(np.random.randint(r + 1)) for r in rest)]
        elif self.where == "center":
            corners = [(rest[0] // 2, rest[1] // 2)]
        else:
            shares = (0.0, 0.5, 1.0)
            corners = [tuple(int(r * s) if r == max(rest) else r // 2 for r in rest) for s in shares]
        results["clips"] = [
            clip.crop(top, left, self.size, self.size) for clip in results["clips"] for top, left in corners
        ]
        return results


@TRANSFORMS.register_module()
class FlipClip(BaseTransform):
    """Randomly flip clips and keypoints horizontally, and swap left and right joints.

    Args:
        prob: probability of flipping.
        joints: name of the skeleton, see `visionattn.heads.action.keypoints.FLIP_PAIRS`; None does not swap joints, as
            in the published code.
    """

    def __init__(self, prob: float = 0.5, joints: str | None = None) -> None:
        if joints is not None and joints not in JOINTS:
            raise ConfigError(f"FlipClip: `joints` must be None or one of {', '.join(JOINTS)}, got {joints!r}")
        if not 0 <= prob <= 1:
            raise ConfigError(f"FlipClip: `prob` must be in [0, 1], got {prob}")
        self.prob, self.pairs = prob, FLIP_PAIRS[joints] if joints else ()

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Flip all clips or none."""
        if np.random.random() < self.prob:
            results["clips"] = [clip.flipped(self.pairs) for clip in results["clips"]]
        return results


@TRANSFORMS.register_module()
class PackClip(BaseTransform):
    """Pack clips as a tensor, and keypoints as patch masks and targets in a data sample.

    Args:
        patch_size: patch size of the model, in pixels.
        inflation: see `visionattn.heads.action.masks.patch_masks`.
        targets: whether to compute the targets of PAAT.
        meta_keys: keys of the pipeline's results to keep as meta information, if present.
    """

    def __init__(
        self,
        patch_size: int = 16,
        inflation: int | None = 1,
        targets: bool = True,
        meta_keys: Sequence[str] = ("sample_idx", "video_path", "points_path", "ori_shape", "frame_indices"),
    ) -> None:
        self.patch_size, self.inflation, self.targets, self.meta_keys = patch_size, inflation, targets, tuple(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack ``clips`` and ``gt_label``; with ``keep_frames`` also the frames and points of the first clip."""
        clips: list[Clip] = results["clips"]
        sample = BaseDataElement(metainfo={key: results[key] for key in self.meta_keys if key in results})
        if results.get("gt_label") is not None:
            sample.set_field(torch.tensor(int(results["gt_label"])), "gt_label")
        if clips[0].points is not None:
            masks = [patch_masks(clip.points, clip.size, self.patch_size, self.inflation) for clip in clips]
            sample.set_field(torch.from_numpy(np.stack(masks)), "pose_mask")
            if self.targets:
                found = [joint_targets(clip.points, clip.size, self.patch_size) for clip in clips]
                sample.set_field(torch.from_numpy(np.stack(found)), "joint_targets")
        if results.get("keep_frames"):
            sample.set_field(torch.from_numpy(np.ascontiguousarray(clips[0].frames)), "frames")
            if clips[0].points is not None:
                sample.set_field(torch.from_numpy(np.ascontiguousarray(clips[0].points)), "points")
        frames = np.stack([np.ascontiguousarray(clip.frames.transpose(3, 0, 1, 2)) for clip in clips])
        return {"inputs": torch.from_numpy(frames), "data_samples": sample}


def read_clip_samples(config: Config, split: str, number: int) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yield the first clips of a split after the whole data pipeline, including random augmentations.

    Args:
        config: the config.
        split: ``"train"``, ``"val"`` or ``"test"``.
        number: maximum number of clips.

    Yields:
        File name, class name, frames (RGB uint8 ``[T, H, W, 3]``) and keypoints (``[T, people, J, 2]``, x and y in
        pixels, NaN where missing; without people if the pipeline reads none).

    Raises:
        ConfigError: the config has no such split.
    """
    with split_dataset(config, split) as dataset:
        classes = dataset.metainfo["classes"]
        for index in range(min(number, len(dataset))):
            packed = dataset.pipeline({**dataset.get_data_info(index), "keep_frames": True})["data_samples"]
            frames = packed.frames.numpy()
            points = packed.points.numpy() if "points" in packed else np.zeros((len(frames), 0, 0, 2), np.float32)
            name = Path(packed.metainfo.get("video_path", "clip")).name
            yield name, str(classes[int(packed.gt_label)]), frames, points
