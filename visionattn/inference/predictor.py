"""Predict with a trained model.

>>> predictor = Predictor.from_pretrained("nuclei")  # or Predictor.from_run("work_dirs/x")
>>> prediction = predictor("photo.jpg")  # or a PIL image, or an array: BGR, unless `channel_order` is "rgb"
>>> prediction.boxes, prediction.names, prediction.draw()
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from visionattn.errors import OutOfMemoryError
from visionattn.inference.analysis.thresholds import find_thresholds
from visionattn.inference.job import Job, TrainedModel, View, job_of
from visionattn.inference.memory import available_memory, in_smaller_batches
from visionattn.inference.options import STYLE, Options, pick_device, split_options
from visionattn.inference.tile_size import SHRUNK, best_tile, known_size, resized_side, suits_whole
from visionattn.inference.tiling import Tile, crop, tile_grid

__all__ = ["Options", "Predictor", "pick_device"]

CPU_BATCH_PIXELS = 1 << 20
"""On a CPU, tiles share a batch only up to this number of pixels: larger batches are not faster."""
MEMORY_SHARE = 0.6
"""Share of the available memory that a forward pass may need by the estimate of the job."""
SMALLEST_TILE = 128
"""Side of the smallest tile tried when an image does not fit into memory."""


class Predictor:
    """A trained model, ready to predict on images, videos or point clouds.

    Args:
        config: config file of the model, or a loaded config.
        checkpoint: the weights.
        device: device of the model; by default the first GPU if there is one, else the CPU.
        score_thr: detections with a lower score are discarded; a mapping has thresholds by class, and ``"best"`` uses
            those that ``visionattn test --report`` has found for the run.
        batch_size: number of inputs (or tiles) per forward pass.
        tile: side length in pixels of the square tiles that larger images are cut into; ``"auto"`` chooses the size
            that suits the model; None processes whole images.
        overlap: overlap of neighboring tiles in pixels; None is a quarter of ``tile``.
        tta: also predict on the horizontally mirrored image, and merge.
        scales: predict at these multiples of the test size, and merge.
        max_pixels: image files with more pixels are rejected before decoding.
        channel_order: order of the channels of input arrays, ``"bgr"`` or ``"rgb"``.
        opacity: opacity of drawn masks, class maps and heat maps, in [0, 1]; None chooses it by their number.
        line_width: width of drawn lines in pixels; None chooses it by the size of the image.
        hide_labels: draw no names, scores and legends.
        amp: compute backbone, neck and heads in float16 on CUDA and in bfloat16 on a CPU, and the rest in float32.
        **own: fields of the ``OwnOptions`` of the model's job, such as ``points`` for action recognition.

    `visionattn.inference.Options` describes the options in detail.

    Attributes:
        job: the `visionattn.inference.job.Job` of the model.
        classes: class names by label.
        options: the inference options.

    Raises:
        ConfigError: the config, the device or an option is invalid, or the model does not support an option.
        CheckpointError: the checkpoint cannot be read safely, or does not fit the model.
        TypeError: an option is unknown.
    """

    def __init__(
        self,
        config: Any,
        checkpoint: str | Path,
        device: str | torch.device | None = None,
        *,
        score_thr: float | str | Mapping[str, float] = Options.score_thr,
        batch_size: int = Options.batch_size,
        tile: int | Literal["auto"] | None = Options.tile,
        overlap: int | None = Options.overlap,
        tta: bool = Options.tta,
        scales: Sequence[float] = Options.scales,
        max_pixels: int = Options.max_pixels,
        channel_order: Literal["bgr", "rgb"] = Options.channel_order,
        opacity: float | None = Options.opacity,
        line_width: int | None = Options.line_width,
        hide_labels: bool = Options.hide_labels,
        amp: bool = Options.amp,
        **own: Any,
    ) -> None:
        from visionattn.engine.model import load_model

        given = {
            "score_thr": score_thr, "batch_size": batch_size, "tile": tile, "overlap": overlap, "tta": tta,
            "scales": scales, "max_pixels": max_pixels, "channel_order": channel_order,
            "opacity": opacity, "line_width": line_width, "hide_labels": hide_labels, "amp": amp,
        }  # fmt: skip
        given["score_thr"] = _thresholds(score_thr, checkpoint)
        self._set_up(load_model(config, checkpoint, device=pick_device(device)), given | own)

    @classmethod
    def from_run(cls, work_dir: str | Path, device: str | torch.device | None = None, **options: Any) -> "Predictor":
        """Load the best checkpoint of a training run, or its last one if there is no best."""
        from visionattn.engine.model import find_run

        return cls(*find_run(work_dir), device, **options)

    @classmethod
    def from_pretrained(
        cls, name: str, device: str | torch.device | None = None, *, weights: str | Path | None = None, **options: Any
    ) -> "Predictor":
        """Load a trained model by name: one of the package, such as ``"nuclei"``, or a published one.

        Published weights are downloaded once. ``visionattn models`` lists the names.

        Args:
            name: name of the model.
            device: as for the class.
            weights: file of the weights, which is used in place of a download.
            **options: as for the class.

        Raises:
            ConfigError: there is no model of this name.
            CheckpointError: the weights cannot be downloaded or read; see `visionattn.zoo.resolve`.
        """
        from visionattn.zoo import given_file, resolve

        with given_file(name, weights):
            return cls(*resolve(name, weights), device, **options)

    @classmethod
    def from_onnx(
        cls,
        path: str | Path,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> "Predictor":
        """Use a file of ``visionattn export`` with ONNX Runtime; OpenMMLab is not needed.

        Args:
            path: the ``.onnx`` file.
            providers: execution providers in order of preference, such as ``["cuda", "cpu"]``; None is the CPU.
            threads: number of threads of an operator; None lets ONNX Runtime choose.
            **options: as for the class.

        Raises:
            DataError: the file cannot be read, or has no metadata.
            ConfigError: a provider is not available, or an option is invalid.
            MissingDependencyError: onnxruntime is not installed.
        """
        from visionattn.inference.job import job_by_name
        from visionattn.inference.onnx.model import OnnxModel

        model = OnnxModel(path, providers, threads)
        return cls.from_model(model, job_by_name(model.task), **options)

    @classmethod
    def from_model(cls, model: TrainedModel, job: type[Job] | None = None, **options: Any) -> "Predictor":
        """Use a model that is already loaded.

        Args:
            model: a `visionattn.engine.model.LoadedModel`, or any `visionattn.inference.job.TrainedModel`.
            job: the job of the model; by default the one that accepts its class.
            **options: as for the class.
        """
        self = cls.__new__(cls)
        self._set_up(model, options, job)
        return self

    def _set_up(self, model: TrainedModel, given: dict[str, Any], job: type[Job] | None = None) -> None:
        job = job or job_of(type(model.model), model.cfg)
        if "score_thr" in given:
            given = {**given, "score_thr": _thresholds(given["score_thr"], None)}
        options, own = split_options(given, job.OwnOptions)
        self._warned: set[str] = set()
        self._auto = options.tile == "auto"
        self._size = None if options.tile is None else known_size(model.cfg, getattr(model, "meta", {}))
        self.options = options.sized(best_tile(model.cfg, self._size)) if self._auto else options
        if options.amp:
            model.use_amp()
        self.model, self.job = model, job(model, self.options, own)
        self.classes = tuple(model.classes)
        self._style = {name: getattr(self.options, name) for name in STYLE} if self.job.styled else {}
        self._views = self.job.test_views()
        self._batch_size = min(self.options.batch_size, self.job.max_batch_size)

    def _warn_of_tiles(self) -> None:
        best, side = best_tile(self.model.cfg, self._size), resized_side(self.model.cfg)
        if self._auto and self._size is None:
            self._warn(
                f"the size of the images that the model was trained on is unknown; `tile` auto is {best} pixels, and "
                "objects may appear larger or smaller than in training: set `tile` to the size of the training images"
            )
        elif side is not None and best < SHRUNK * self.options.tile:
            self._warn(
                f"the test pipeline shrinks tiles of {self.options.tile} pixels to {side}, so that small objects are "
                f"missed; `tile` {best} shows objects at the scale that the model was tested at"
            )

    def __call__(self, inputs: Any) -> Any:
        """Predict on one input, or on a list of inputs.

        Args:
            inputs: an input that `Job.read` of the model's job accepts, or a list or tuple of such inputs. For images:
                a path, a PIL image, or a uint8 array, ``[H, W, 3]`` in the order ``channel_order`` (BGR by default, as
                in OpenCV) or gray ``[H, W]``; for point clouds: a path or an array
                ``[N, C]``; for action recognition: the path of a video.

        Returns:
            One typed prediction, or a list of them.

        Raises:
            DataError: a file cannot be read.
        """
        if isinstance(inputs, (list, tuple)):
            return list(self.stream(inputs))
        return next(self.stream([inputs]))

    def stream(self, inputs: Iterable[Any], batch_size: int | None = None) -> Iterator[Any]:
        """Predict on any number of inputs, holding one batch in memory at a time.

        Args:
            inputs: the inputs, see `__call__`.
            batch_size: number of inputs that are read before the first prediction; None is that of the options.
        """
        source = iter(inputs)
        while chunk := list(islice(source, batch_size or self._batch_size)):
            items = [self.job.read(given) for given in chunk]
            for given, item, prediction in zip(chunk, items, self.predict(items), strict=True):
                if isinstance(given, (str, Path)):
                    yield replace(prediction, path=Path(given))
                else:
                    yield self.job.attach(prediction, item)

    def predict(self, items: Sequence[Any]) -> list[Any]:
        """Predict on inputs in memory, as returned by `Job.read`: for images BGR uint8 ``[H, W, 3]`` arrays.

        If a batch does not fit into memory, smaller batches are tried, then, for a single image, ever smaller tiles.
        Each step issues a warning.

        Raises:
            OutOfMemoryError: not even the smallest tile fits.
        """
        may_cut = self.options.tile is None and self.job.tiles
        try:
            if may_cut and not all(self._fitting(*item.shape[:2]) for item in items):
                raise OutOfMemoryError("an image is too large")
            return self._predict(items, self.options)
        except OutOfMemoryError:
            if len(items) > 1:
                return [prediction for item in items for prediction in self.predict([item])]
            if not may_cut:
                raise
            return [self._in_tiles(items[0])]

    def _fitting(self, height: int, width: int) -> int:
        """Return how many images of a size fit into the available memory by an estimate; without one, a large number.

        Only for models on the CPU: on a GPU, an allocation that does not fit raises an error, while Linux grants more
        main memory than it has, and kills the process that uses it.
        """
        free = available_memory() if self.job.pixel_bytes and self.model.device.type == "cpu" else None
        return 1 << 30 if free is None else int(free * MEMORY_SHARE) // max(1, self.job.pixel_bytes * height * width)

    def _in_tiles(self, image: Any) -> Any:
        tile = max(image.shape[:2])
        while tile > SMALLEST_TILE and not self._fitting(tile // 2, tile // 2):
            tile //= 2
        while True:
            tile //= 2
            options = replace(self.options, tile=max(tile, SMALLEST_TILE), overlap=None)
            self._warn(f"images of this size do not fit into memory; continuing with `tile` {options.tile}")
            try:
                return self._predict([image], options)[0]
            except OutOfMemoryError:
                if tile <= SMALLEST_TILE:
                    raise

    def _predict(self, items: Sequence[Any], options: Options) -> list[Any]:
        results: list[Any] = [None] * len(items)
        single = []  # indices of items with one tile and one view, whose outputs need no merging
        for index, item in enumerate(items):
            tiles = self._tiles(item, options)
            if len(tiles) > 1 and options is self.options:  # not for tiles that were chosen to save memory
                self._warn_of_tiles()
            if len(tiles) > 1 or len(self._views) > 1:
                results[index] = self._merged(item, tiles, options)
            else:
                single.append(index)
        batch = [items[index] for index in single]
        largest = max((item.shape for item in batch if hasattr(item, "shape")), key=np.prod, default=None)
        size = self._batch_size if largest is None else min(self._batch_size, max(1, self._fitting(*largest[:2])))
        for number, output, seconds in self._outputs(batch, self._views[0], size):
            prediction = self.job.decode(output, batch[number])
            results[single[number]] = replace(prediction, seconds=seconds, **self._style)
        return results

    def _tiles(self, item: Any, options: Options) -> list[Tile]:
        if options.tile is None:
            return []
        height, width = item.shape[:2]
        if self._auto and suits_whole(self.model.cfg, options.tile, height, width):
            return []
        return tile_grid(height, width, options.tile, options.overlap)

    def _merged(self, image: Any, tiles: list[Tile], options: Options) -> Any:
        """Merge the outputs for all tiles and views of one image."""
        tiles = tiles or [(0, 0, image.shape[1], image.shape[0])]
        merger = self.job.merger(image, self._views, options.overlap or 0)
        size, spent = self._tile_batch(tiles[0]), 0.0
        for start in range(0, len(tiles), size):
            batch = tiles[start : start + size]
            parts = [crop(image, tile) for tile in batch]
            for view in self._views:
                # tiles of different sizes do not share a batch, but the merger gets them row by row
                found = sorted(self._outputs(parts, view, size), key=lambda entry: -entry[0])
                while found:
                    index, output, seconds = found.pop()
                    merger.add(batch[index], view, output)
                    spent += seconds
        return replace(merger.result(), seconds=spent, **self._style)

    def _tile_batch(self, tile: Tile) -> int:
        """Number of tiles per forward pass."""
        if self.model.device.type != "cpu":
            return self._batch_size
        x0, y0, x1, y1 = tile
        return max(1, min(self._batch_size, CPU_BATCH_PIXELS // ((x1 - x0) * (y1 - y0))))

    def _outputs(self, items: Sequence[Any], view: View, batch_size: int) -> Iterator[tuple[int, Any, float]]:
        """Yield the index, raw output and seconds of each item; only items with one batch key share a batch."""
        by_key: dict[Any, list[int]] = {}
        for index, item in enumerate(items):
            by_key.setdefault(self.job.batch_key(item), []).append(index)
        for indices in by_key.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                began = time.perf_counter()
                outputs = in_smaller_batches(
                    lambda part: self.model.run([self.job.sample(item, view) for item in part], view.scale),
                    [items[index] for index in batch], self.job.describe(items[batch[0]]), self._warn,
                )  # fmt: skip
                seconds = (time.perf_counter() - began) / len(batch)
                outputs.reverse()  # popped one by one, so that each is freed as soon as it has been used
                for index in batch:
                    yield index, outputs.pop(), seconds

    def _warn(self, line: str) -> None:
        if line not in self._warned:  # once, not for each input
            self._warned.add(line)
            warnings.warn(line, stacklevel=2)


def _thresholds(score_thr: Any, checkpoint: str | Path | None) -> Any:
    """Replace ``"best"`` or a file by thresholds by name."""
    if not isinstance(score_thr, str):
        return score_thr
    Options(score_thr=score_thr)  # checks the text
    return find_thresholds(score_thr, checkpoint)
