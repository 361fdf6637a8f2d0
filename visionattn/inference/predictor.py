"""A trained model as a function from pictures to predictions.

>>> predictor = Predictor.from_run("work_dirs/x")
>>> prediction = predictor("photo.jpg")
>>> prediction.boxes, prediction.names, prediction.draw()
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionattn.errors import CheckpointError, ConfigError, OutOfMemoryError
from visionattn.heads.action.results import find_points
from visionattn.heads.segmentation.blending import MapCanvas, probabilities
from visionattn.heads.segmentation.panoptic_tiles import merge_panoptic_tiles
from visionattn.inference.memory import in_smaller_batches
from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.inference.tiling import NMS_IOU, Tile, flip_prediction, merge_by_nms, merge_tiles, tile_grid
from visionattn.io.images import MAX_PIXELS, check_size, read_image, to_bgr

__all__ = ["Options", "Predictor", "pick_device"]

CPU_BATCH_PIXELS = 1 << 20
"""Tiles share a batch on a CPU only up to this many pixels."""
SMALLEST_TILE = 128
"""Where not even tiles of this side fit into the memory, smaller ones would not help."""


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device of that name, or without one the first GPU if there is any, else the CPU.

    Raises:
        ConfigError: the name is none, or that device is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not known; use cpu, cuda or cuda:0, cuda:1, ...") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise ConfigError(f"device {device} is not there; PyTorch sees {count} CUDA devices; use cpu?")
    return found


@dataclass(frozen=True)
class Options:
    """How a `Predictor` goes about it.

    Attributes:
        score_thr: boxes with a lower score are left out.
        batch_size: pictures (or tiles) that go through the model together. Only pictures of one size do, so
            that what the model says of one does not depend on the others. Tiles share a batch on a CPU only
            while they are small.
        tile: side in pixels of the tiles that larger images are cut into; None takes each image whole. A tile is
            a picture of its own to the model: it is resized as the config says, so that a config with a fixed
            size sees more detail in tiles; ``dilations="auto"`` follows the tile's size, and norms over the
            whole picture see the tile; the model's limits on boxes (nms_pre, max_per_img) hold for each tile, so
            that a crowd loses fewer. Tiles near the size of the training pictures suit all of these.
        overlap: pixels shared by neighboring tiles, a quarter of `tile` unless given. What a model says near a
            cut border lacks context, and objects larger than the overlap are put together from pieces.
        tta: look at each picture mirrored too, and merge what is found.
        scales: look at each picture at these multiples of the size that the model was tested at, and merge.
        max_pixels: image files with more pixels are refused.
        points: key points of videos, for models of actions: a file, or a folder with files named as the videos.

    Raises:
        ConfigError: a value is out of range.
    """

    score_thr: float = 0.3
    batch_size: int = 8
    tile: int | None = None
    overlap: int | None = None
    tta: bool = False
    scales: tuple[float, ...] = (1.0,)
    max_pixels: int = MAX_PIXELS
    points: str | None = None

    def __post_init__(self):
        if not 0 <= self.score_thr <= 1:  # NaN fails too
            raise ConfigError(f"--score-thr must be in 0..1, got {self.score_thr}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.max_pixels < 1:
            raise ConfigError(f"--max-pixels must be at least 1, got {self.max_pixels}")
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ConfigError(f"--scales must be one or more numbers in 0.1..10, got {list(self.scales)}")
        if self.tile is None:
            if self.overlap is not None:
                raise ConfigError("--overlap is the overlap of tiles; give --tile too, or leave it out")
            return
        if self.tile < 32:
            raise ConfigError(f"--tile must be at least 32 pixels, got {self.tile}")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.tile // 4)
        if not 0 <= self.overlap < self.tile:
            raise ConfigError(f"--overlap must be in 0..{self.tile - 1} for --tile {self.tile}, got {self.overlap}")


class Predictor:
    """A model ready to predict.

    Args:
        config: config file of the model, or a loaded config.
        checkpoint: its weights.
        device: where to run; the first GPU if there is one, else the CPU.
        options: the fields of `Options`, such as ``score_thr=0.5``.

    Raises:
        ConfigError: the config, the device or an option is wrong, or the model cannot be tiled.
        CheckpointError: the checkpoint cannot be read safely, or does not fit the model.
    """

    def __init__(self, config: Any, checkpoint: str | Path, device: str | torch.device | None = None, **options):
        from visionattn.engine.model import load_model

        checked = Options(**options)
        self._set_up(load_model(config, checkpoint, device=pick_device(device)), checked)

    @classmethod
    def from_run(cls, work_dir: str | Path, device: str | torch.device | None = None, **options) -> "Predictor":
        """The model that a training run left in its folder, by its best checkpoint or else its last."""
        from visionattn.engine.model import find_run

        return cls(*find_run(work_dir), device, **options)

    @classmethod
    def from_model(cls, loaded: Any, **options) -> "Predictor":
        """From a `visionattn.engine.model.LoadedModel`, or anything with its attributes and methods."""
        self = cls.__new__(cls)
        self._set_up(loaded, Options(**options))
        return self

    def _set_up(self, loaded: Any, options: Options) -> None:
        self.loaded, self.options = loaded, options
        self._warned: set[str] = set()
        self.classes, self.task = tuple(loaded.classes), loaded.task
        self.category_ids = _category_ids(loaded.cfg, self.classes)
        # people know the maps of their data by its colours, and forgeries by red
        known = getattr(loaded, "palette", None) if self.task in ("semantic", "forgery") else None
        self.colors = tuple(map(tuple, known)) if known and len(known) == len(self.classes) else None
        self.merge_iou = _merge_iou(loaded.cfg)
        self._views = [(scale, mirror) for scale in options.scales for mirror in ((False, True)[: 1 + options.tta])]
        if self.task == "panoptic" and len(self._views) > 1:
            raise ConfigError(
                "--tta and several --scales merge boxes, masks or maps of classes, and cannot merge the segments of a "
                "panoptic model, which partition the picture differently in each view; leave them out"
            )
        if self.task == "action" and (options.tile or len(self._views) > 1):
            raise ConfigError("--tile, --tta and --scales are of pictures; views of videos are set in the config")
        if self.task != "action" and options.points is not None:
            raise ConfigError(f"--points is for models of actions; this one is of {self.task}")
        if self.task == "localization" and (options.tile or len(self._views) > 1):
            raise ConfigError(
                "--tile, --tta and several --scales cannot merge the maps of localization; leave them out"
            )

    def __call__(self, images: Any) -> Prediction | list[Prediction]:
        """Predict on one picture, or on a list of them.

        Args:
            images: a path, a uint8 array (BGR ``[H, W, 3]`` or gray ``[H, W]``), a PIL image, or a list or
                tuple of such.

        Raises:
            DataError: a file cannot be read.
        """
        if isinstance(images, (list, tuple)):
            return list(self.stream(images))
        return next(self.stream([images]))

    def stream(self, images: Iterable[Any]) -> Iterator[Prediction]:
        """Predict on any number of pictures, holding one batch of them at a time."""
        source = iter(images)
        while chunk := list(islice(source, self.options.batch_size)):
            paths = [Path(item) if isinstance(item, (str, Path)) else None for item in chunk]
            arrays = [self._to_array(item) for item in chunk]
            for path, array, prediction in zip(paths, arrays, self.predict(arrays), strict=True):
                yield replace(prediction, path=path, image=array if path is None else None)

    def _to_array(self, item: Any) -> np.ndarray:
        if isinstance(item, (str, Path)):
            return read_image(item, self.options.max_pixels)
        if not isinstance(item, np.ndarray):
            if not hasattr(item, "getexif"):
                raise TypeError(f"an image must be a path, an array or a PIL image, got {type(item).__name__}")
            check_size("image", *item.size, self.options.max_pixels)
            return to_bgr(item)
        if item.dtype != np.uint8 or item.ndim not in (2, 3) or item.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(f"an array must be uint8, [H, W, 3] or [H, W], got {item.dtype} {item.shape}")
        if item.size == 0:
            raise ValueError(f"an array must have pixels, got shape {item.shape}")
        if item.ndim == 3 and item.shape[2] == 3:
            return item
        return np.repeat(item.reshape(*item.shape[:2], 1), 3, axis=2)

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predict on arrays in memory, BGR uint8 ``[H, W, 3]``, of any sizes.

        Where the memory does not hold a batch, smaller ones are tried, down to one picture; then, for a picture that
        was to be taken whole, ever smaller tiles. Each step is a warning.

        Raises:
            OutOfMemoryError: that did not help.
        """
        if self.task == "action" and len(images):
            raise ConfigError("a model of actions takes videos; use predict_video")
        try:
            return self._predict(images, self.options)
        except OutOfMemoryError:
            if len(images) > 1:
                return [prediction for image in images for prediction in self.predict([image])]
            if self.options.tile is not None or self.task in ("localization", "panoptic"):
                raise
            return [self._in_tiles(images[0])]

    def _in_tiles(self, image: np.ndarray) -> Prediction:
        tile = max(image.shape[:2])
        while True:
            tile //= 2
            options = replace(self.options, tile=max(tile, SMALLEST_TILE), overlap=None)
            self._warn(f"pictures of this size do not fit into the memory whole; going on with --tile {options.tile}")
            try:
                return self._predict([image], options)[0]
            except OutOfMemoryError:
                if tile <= SMALLEST_TILE:
                    raise

    def _predict(self, images: Sequence[np.ndarray], options: Options) -> list[Prediction]:
        if self.task in ("semantic", "forgery") and (options.tile or len(self._views) > 1):
            return [self._blended(image, options) for image in images]
        results: list[Prediction | None] = [None] * len(images)
        whole = []
        for index, image in enumerate(images):
            tiles = self._tiles(image, options)
            if len(tiles) == 1:
                whole.append(index)
                continue
            found = self._merged([_cut(image, tile) for tile in tiles], self._tile_batch(tiles[0]))
            if self.task == "panoptic":
                results[index] = merge_panoptic_tiles(found, tiles, image.shape[:2], self.loaded.things)
            else:
                results[index] = merge_tiles(found, tiles, image.shape[:2], self.merge_iou)
        found = self._merged([images[i] for i in whole], self.options.batch_size)
        for index, prediction in zip(whole, found, strict=True):
            results[index] = prediction
        return results

    def predict_video(self, video: str | Path) -> dict[str, Any]:
        """The action in a video, by a model of actions; see `LoadedModel.predict_video`.

        Raises:
            DataError: the video or its key points cannot be read.
        """
        video = Path(video)
        return self.loaded.predict_video(video, find_points(video, self.options.points))

    @staticmethod
    def _tiles(image: np.ndarray, options: Options) -> list[Tile]:
        height, width = image.shape[:2]
        if options.tile is None:
            return [(0, 0, width, height)]
        return tile_grid(height, width, options.tile, options.overlap)

    def _tile_batch(self, tile: Tile) -> int:
        """Tiles that go through the model together. On a CPU many are no faster, and take the memory tiles save."""
        if getattr(self.loaded, "device", torch.device("cpu")).type != "cpu":
            return self.options.batch_size
        x0, y0, x1, y1 = tile
        return max(1, min(self.options.batch_size, CPU_BATCH_PIXELS // ((x1 - x0) * (y1 - y0))))

    def _merged(self, images: list[np.ndarray], batch_size: int) -> list[Prediction]:
        """Boxes and masks of each image from all views."""
        views = []
        for scale, mirror in self._views:
            found: list[Any] = [None] * len(images)
            for index, output, seconds in self._outputs(images, batch_size, scale, mirror):
                prediction = self._prediction(output, images[index].shape[:2], seconds)
                found[index] = flip_prediction(prediction) if mirror else prediction
            views.append(found)
        if len(views) == 1:
            return views[0]
        return [merge_by_nms(list(found), self.merge_iou) for found in zip(*views, strict=True)]

    def _blended(self, image: np.ndarray, options: Options) -> Prediction:
        """The map of classes of one image from all tiles and views."""
        size, tiles, spent = image.shape[:2], self._tiles(image, options), 0.0
        forged = 1 if self.task == "forgery" else None
        canvas, scores = MapCanvas(size, options.overlap or 0, keep=forged), [0.0] * len(self._views)
        batch_size = self._tile_batch(tiles[0])
        for start in range(0, len(tiles), batch_size):
            batch = tiles[start : start + batch_size]
            parts, totals = [_cut(image, tile) for tile in batch], [None] * len(batch)
            for number, (scale, mirror) in enumerate(self._views):
                for index, output, seconds in self._outputs(parts, batch_size, scale, mirror, logits=True):
                    view = probabilities(output["logits"])
                    view = view[:, :, ::-1] if mirror else view
                    totals[index] = view if totals[index] is None else totals[index] + view
                    if forged is not None:  # a picture is forged if any of its tiles is
                        scores[number] = max(scores[number], float(output["image_scores"][forged]))
                    spent += seconds
            for tile, total in zip(batch, totals, strict=True):
                canvas.add(tile, total)
        found = {"semantic": canvas.result()}
        if forged is not None:
            heat = canvas.kept / len(self._views)
            found = {"heatmap": heat, "semantic": (heat > self.loaded.threshold).astype(np.int64)}
            score = float(np.mean(scores))
            found["image_scores"] = np.array([1 - score, score], np.float32)
        return self._prediction(found, size, spent)

    def _outputs(
        self, images: list[np.ndarray], batch_size: int, scale: float, mirror: bool, logits: bool = False
    ) -> Iterator[tuple[int, dict[str, Any], float]]:
        """What the model says of each image, with its index and seconds; only images of one size share a batch."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(image.shape, []).append(index)
        for indices in by_shape.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                views = [images[i][:, ::-1] if mirror else images[i] for i in batch]
                outputs, seconds = self._forward(views, scale, logits)
                outputs = outputs[::-1]  # taken from the end, each is let go as soon as its user is done
                for index in batch:
                    yield index, outputs.pop(), seconds / len(batch)

    def _forward(self, batch: list[np.ndarray], scale: float, logits: bool) -> tuple[list[dict[str, Any]], float]:
        start = time.perf_counter()
        options = ({"scale": scale} if scale != 1 else {}) | ({"logits": True} if logits else {})
        height, width = batch[0].shape[:2]
        outputs = in_smaller_batches(
            lambda part: self.loaded.predict([np.ascontiguousarray(image) for image in part], **options),
            batch, f"a picture of {width}x{height}", self._warn,
        )  # fmt: skip
        return outputs, time.perf_counter() - start

    def _warn(self, line: str) -> None:
        if line not in self._warned:  # once, not for each picture
            self._warned.add(line)
            warnings.warn(line, stacklevel=2)

    def _prediction(self, output: dict[str, Any], size: tuple[int, int], seconds: float) -> Prediction:
        common = {
            "classes": self.classes,
            "category_ids": self.category_ids,
            "seconds": seconds,
            "colors": self.colors,
        }
        semantic = output.get("semantic")
        common |= {key: output[key] for key in ("heatmap", "image_scores") if output.get(key) is not None}
        if output.get("boxes") is None:
            return Prediction(size, semantic=semantic, **common)
        boxes = np.asarray(output["boxes"], dtype=np.float32).reshape(-1, 4)
        scores = np.asarray(output["scores"], dtype=np.float32)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise CheckpointError("the model puts out NaN or infinity; its checkpoint is from a failed training")
        keep = np.flatnonzero(scores >= self.options.score_thr)
        keep = keep[np.argsort(-scores[keep], kind="stable")]
        boxes = boxes[keep]
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, size[1])
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, size[0])
        labels = np.asarray(output["labels"], dtype=np.int64)[keep]
        if len(labels) and labels.max() >= len(self.classes):
            raise ConfigError(
                f"the model finds class number {labels.max()} but only {len(self.classes)} are named; "
                "set metainfo.classes of the config's test dataset"
            )
        masks = output.get("masks")
        return Prediction(
            size,
            boxes=boxes,
            scores=scores[keep],
            labels=labels,
            masks=None if masks is None else InstanceMasks.from_dense(np.asarray(masks)[keep]),
            semantic=semantic,
            **common,
        )


def _cut(image: np.ndarray, tile: Tile) -> np.ndarray:
    x0, y0, x1, y1 = tile
    return image[y0:y1, x0:x1]


def _merge_iou(cfg: Any) -> float:
    """From which overlap two boxes are one object: as in the model's own last NMS, or `NMS_IOU` where it has none."""
    test_cfg = _look_up(cfg, "model", "test_cfg") or {}
    nms = _look_up(test_cfg, "rcnn", "nms") or _look_up(test_cfg, "nms") or {}
    return float(nms["iou_threshold"]) if nms.get("type") == "nms" and "iou_threshold" in nms else NMS_IOU


def _look_up(node: Any, *keys: str) -> Any:
    """What a config has at a path of keys, None where a part of it is missing."""
    for key in keys:
        node = node.get(key) if hasattr(node, "get") else None
    return node


def _category_ids(cfg: Any, classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """``test_dataloader.dataset.metainfo.category_ids`` of the config, where it says so."""
    given = _look_up(cfg, "test_dataloader", "dataset", "metainfo", "category_ids")
    if given is None:
        return None
    ids = tuple(int(value) for value in given)
    if len(ids) != len(classes):
        raise ConfigError(f"metainfo.category_ids has {len(ids)} ids for {len(classes)} classes")
    return ids
