"""Datasets and pipeline steps of action recognition: clips with key points, see `visionattn.heads.action.clips`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement

from visionattn.engine.registry import DATASETS, TRANSFORMS
from visionattn.errors import ConfigError, DataError
from visionattn.heads.action.clips import Clip, probe_video, read_frames, sample_indices
from visionattn.heads.action.keypoints import FLIP_PAIRS, JOINTS, KINDS, read_points
from visionattn.heads.action.lists import read_action_list
from visionattn.heads.action.masks import joint_targets, patch_masks

__all__ = ["ActionDataset", "CropClip", "FlipClip", "LoadClip", "PackClip", "ResizeClip"]


@DATASETS.register_module()
class ActionDataset(BaseDataset):
    """Videos with labels and key points, from lines ``video,skeleton,label``.

    Args:
        ann_file: the list, below ``data_root``.
        data_prefix: ``video`` and ``points``, the folders that its names start from.
        separator: between the parts of a line.
        metainfo: ``classes``, the names of the classes in the order of their labels. Without it they are numbers.
        **kwargs: of mmengine's ``BaseDataset``.

    Raises:
        DataError: the list is missing or malformed, or has a label beyond the classes.
    """

    open_arguments = True

    def __init__(self, ann_file: str, separator: str = ",", **kwargs: Any) -> None:
        self.separator = separator
        kwargs.setdefault("data_prefix", {"video": "", "points": ""})
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict for each video."""
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


@TRANSFORMS.register_module()
class LoadClip(BaseTransform):
    """Frames of one clip or several, and the key points in them, as `Clip` objects under ``clips``.

    Args:
        num_frames: of a clip.
        rate: distance of two of them in a video with 30 in a second.
        views: clips, evenly over the video; ``"random"`` for one at a random place, to train.
        points: False reads no key points.
        kind: of the files of key points, see `visionattn.heads.action.keypoints.read_points`.
        min_score: points with a lower score are missing.
        margin: frames at the end that are left out.

    Raises:
        DataError: a file cannot be read.
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
            raise ConfigError(f"LoadClip views={views!r} must be 'random' or a number from 1 on")
        if kind is not None and kind not in KINDS:
            raise ConfigError(f"LoadClip kind={kind!r} must be one of {', '.join(KINDS)}")
        if num_frames < 1 or rate < 1:
            raise ConfigError(f"LoadClip num_frames={num_frames} and rate={rate} must be at least 1")
        self.num_frames, self.rate, self.views, self.points = num_frames, rate, views, points
        self.kind, self.min_score, self.margin = kind, min_score, margin

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read ``video_path`` and ``points_path``; numpy's generator is seeded for each sample."""
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
    """Whether coordinates are shares of the frame: none is above 1, and some are there."""
    known = points[np.isfinite(points)]
    return bool(known.size) and float(known.max()) <= 1.0


def _at(points: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Points of frames; those after the end of the recording are missing."""
    taken = points[np.minimum(indices, len(points) - 1)].copy()
    taken[indices >= len(points)] = np.nan
    return taken


@TRANSFORMS.register_module()
class ResizeClip(BaseTransform):
    """The shorter side to a length; to a random one for a pair of lengths.

    Args:
        short: the length, or least and most.
    """

    def __init__(self, short: int | Sequence[int] = 256) -> None:
        low, high = (short, short) if isinstance(short, int) else tuple(short)
        if not 1 <= low <= high:
            raise ConfigError(f"ResizeClip short={short!r} must be a length, or least and most")
        self.low, self.high = low, high

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize all clips alike."""
        length = int(np.random.randint(self.low, self.high + 1))
        results["clips"] = [clip.short_side(length) for clip in results["clips"]]
        return results


@TRANSFORMS.register_module()
class CropClip(BaseTransform):
    """A square of each frame.

    Args:
        size: its side.
        where: ``"random"``, ``"center"``, or ``"three"``: both ends and the middle of the longer side, each a view.

    Raises:
        DataError: the frames are smaller.
    """

    def __init__(self, size: int = 224, where: str = "center") -> None:
        if where not in ("random", "center", "three") or size < 1:
            raise ConfigError(f"CropClip size={size} must be at least 1, where={where!r} random, center or three")
        self.size, self.where = size, where

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop all clips alike."""
        height, width = results["clips"][0].size
        rest = height - self.size, width - self.size
        if min(rest) < 0:
            raise DataError(
                f"{results.get('video_path')}: frames of {width} x {height} are smaller than the crop of {self.size}; "
                "resize before"
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
    """Mirror a clip, its key points with it; left and right joints change places.

    Args:
        prob: how often.
        joints: name of the joint set, see `visionattn.heads.action.keypoints.FLIP_PAIRS`; None keeps the joints where
            they are, as published.
    """

    def __init__(self, prob: float = 0.5, joints: str | None = None) -> None:
        if joints is not None and joints not in JOINTS:
            raise ConfigError(f"FlipClip joints={joints!r} must be one of {', '.join(JOINTS)}, or None")
        if not 0 <= prob <= 1:
            raise ConfigError(f"FlipClip prob={prob} must be in 0..1")
        self.prob, self.pairs = prob, FLIP_PAIRS[joints] if joints else ()

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Flip all clips or none."""
        if np.random.random() < self.prob:
            results["clips"] = [clip.flipped(self.pairs) for clip in results["clips"]]
        return results


@TRANSFORMS.register_module()
class PackClip(BaseTransform):
    """Clips as a tensor, key points as masks and targets over patches, the rest as a data sample.

    Args:
        patch_size: of the model.
        inflation: of the masks, see `visionattn.heads.action.masks.patch_masks`.
        targets: whether to make the targets of PAAT.
        meta_keys: what of the pipeline's results the sample keeps, where they are there.
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
        """Pack ``clips`` and ``gt_label``; with ``keep_frames`` also the frames of the first clip, to draw them."""
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
        frames = np.stack([np.ascontiguousarray(clip.frames.transpose(3, 0, 1, 2)) for clip in clips])
        return {"inputs": torch.from_numpy(frames), "data_samples": sample}
