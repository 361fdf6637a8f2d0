"""The interface between the inference code and a job (a task such as object detection).

A job is one kind of prediction: detection, segmentation, forgery detection, boxes in point clouds, ... Everything
that only one job needs is in its folder below `visionattn.heads`, and the rest of the package reaches it through the
`Job` class of that folder's ``job.py``. `visionattn.inference`, `visionattn.engine` and `visionattn.cli` do not refer
to any job by name.

Steps of a prediction: `Job.find` lists the input files, `Job.read` loads one, `Job.sample` returns the input of the
test pipeline of the config, `TrainedModel.run` runs the pipeline and the model, and `Job.decode` converts the raw
output to a typed prediction. If an image is cut into tiles, mirrored or rescaled, a `Merger` combines the raw outputs
instead. `Job.write` writes the result files and returns their entries in ``predictions.json``.
"""

import argparse
import contextlib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from visionattn.data.recipes import DataSummary, Recipe, Request
from visionattn.errors import ConfigError
from visionattn.inference.options import SCORE_THR, STYLE, ExportOptions, Options
from visionattn.inference.tiling import Tile
from visionattn.inference.writing import write_maps
from visionattn.io.inputs import Source

if TYPE_CHECKING:
    from visionattn.inference.analysis.base import Analysis, TestData

__all__ = [
    "Job",
    "Merger",
    "NoOptions",
    "Result",
    "RunTotals",
    "TrainedModel",
    "View",
    "add_job_modules",
    "job_by_name",
    "job_of",
    "jobs",
    "views_of",
]


class TrainedModel(Protocol):
    """A model with its weights and test pipeline, such as `visionattn.engine.model.LoadedModel`.

    Attributes:
        model: the network, in eval mode.
        cfg: the config.
        classes: class names by label.
        palette: RGB colors by label, or None.
        category_ids: id of each class in COCO files, or None for 1, 2, 3, ...
        device: device of the network.
    """

    model: nn.Module
    cfg: Mapping[str, Any]
    classes: tuple[str, ...]
    palette: Sequence[tuple[int, int, int]] | None
    category_ids: tuple[int, ...] | None
    device: torch.device

    def run(self, samples: Sequence[dict[str, Any]], scale: float = 1.0) -> list[Any]:
        """Run the test pipeline and the network on one batch and return one raw output per sample.

        Args:
            samples: inputs of the pipeline, see `Job.sample`.
            scale: factor on the size that the pipeline resizes to.
        """

    def use_amp(self) -> None:
        """Compute in half precision from now on, except for what follows the heads."""


class Result(Protocol):
    """Interface of every typed prediction.

    Attributes:
        classes: class names by label.
        seconds: inference time for this input in seconds, including preprocessing.
        path: the input file, or None.
    """

    classes: tuple[str, ...]
    seconds: float
    path: Path | None

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """Return the overlay, BGR uint8 ``[H, W, 3]``."""


@dataclass(frozen=True)
class View:
    """One view of an image under test-time augmentation."""

    scale: float = 1.0
    mirrored: bool = False


@dataclass
class RunTotals:
    """Totals of a run over files.

    Attributes:
        inputs: number of inputs predicted, frames of videos included.
        found: totals of `Job.count`.
    """

    inputs: int
    found: Counter


class Merger(ABC):
    """Combines the raw outputs for the tiles and views of one image into one prediction."""

    @abstractmethod
    def add(self, tile: Tile, view: View, output: Any) -> None:
        """Add one raw output. Tiles come row by row, and all views of a tile one after the other."""

    @abstractmethod
    def result(self) -> Any:
        """Return the prediction after the last output."""


@dataclass(frozen=True)
class NoOptions:
    """Base class of the job-specific options; used as is by jobs without such options."""


class Job(ABC):
    """Inputs, decoding, merging, drawing and result files of one kind of prediction; bound to one model.

    Args:
        model: the trained model.
        options: inference options.
        own: options of this job, an `OwnOptions`.

    Attributes:
        name: the name in result files, and of ``task`` in a config that sets the job itself.
        OwnOptions: dataclass with the options that only this job has; each is an option of `Predictor` and, if
            `add_arguments` declares it, of the command line.
        noun: name of one input in messages and summaries, in the singular.
        records: name of the list in ``predictions.json``, in the plural; with ``_id`` for the final ``s``, the key of
            the index of a record.
        accepts_video: a video is one input; otherwise videos are predicted frame by frame.
        tiles: large inputs can be cut into tiles.
        views: mirrored and rescaled views can be merged.
        styled: predictions have the fields `visionattn.inference.options.STYLE`, which `draw` follows.
        trackable: predictions have boxes that can be tracked through a video.
        thresholded: detections below ``score_thr`` are discarded.
        overlay_is_result: the overlay is the result itself, such as a restored image, and is always written.
        max_batch_size: upper bound of ``batch_size``.
        record_types: types of the entries of `record`, for tables with typed columns: ``int``, ``float``, ``str``,
            ``bool``, ``[type]`` for lists, ``{"name": type}`` for objects, and ``{str: type}`` for objects with any
            names.
        trains_on: annotations that ``visionattn train --data`` trains this job on, an element of
            `visionattn.data.recipes.DataSummary.annotations`, or "" if it does not; then `recipe` is required.
    """

    name: ClassVar[str]
    OwnOptions: ClassVar[type] = NoOptions
    noun: ClassVar[str] = "image"
    records: ClassVar[str] = "images"
    accepts_video: ClassVar[bool] = False
    tiles: ClassVar[bool] = False
    views: ClassVar[bool] = False
    styled: ClassVar[bool] = False
    trackable: ClassVar[bool] = False
    thresholded: ClassVar[bool] = False
    overlay_is_result: ClassVar[bool] = False
    max_batch_size: ClassVar[int] = 1 << 30
    record_types: ClassVar[Mapping[str, Any]] = {}
    trains_on: ClassVar[str] = ""

    def __init__(self, model: TrainedModel, options: Options, own: Any = None) -> None:
        self.model, self.options = model, options
        self.own = self.OwnOptions() if own is None else own
        self.classes = tuple(model.classes)
        self._check_thresholds()
        if options.tile is not None and not self.tiles:
            raise ConfigError(f"`tile` is not supported for {self.name} models; process whole inputs")
        for name in STYLE:
            if getattr(options, name) not in (None, False) and not self.styled:
                raise ConfigError(f"`{name}` is not supported for {self.name} models")
        for name, used in (("tta", options.tta), ("scales", options.scales != (1.0,))):
            if used and not self.views:
                raise ConfigError(f"`{name}` is not supported for {self.name} models: their views cannot be merged")

    # Score thresholds

    @property
    def threshold_names(self) -> tuple[str, ...]:
        """Names that the option ``score_thr`` may have a threshold for: the classes."""
        return self.classes

    def _check_thresholds(self) -> None:
        given = self.options.score_thr
        unknown = sorted(set(given) - set(self.threshold_names)) if isinstance(given, Mapping) else []
        if unknown:
            known = ", ".join(self.threshold_names)
            raise ConfigError(f"`score_thr` has a threshold for {unknown[0]!r}, but this model has {known}")

    @property
    def class_thresholds(self) -> np.ndarray:
        """Score threshold of each class, float64 ``[classes]``."""
        given = self.options.score_thr
        if not isinstance(given, Mapping):
            return np.full(len(self.classes), given)
        return np.array([given.get(name, SCORE_THR) for name in self.classes])

    @property
    def threshold_text(self) -> str:
        """The score threshold in words."""
        given = self.options.score_thr
        return "the threshold of its class" if isinstance(given, Mapping) else f"{given:g}"

    # Which models

    @classmethod
    def matches(cls, model: type, config: Mapping[str, Any]) -> bool:
        """Return True if models of this class, built from this model config, belong to this job.

        By default, a model class declares its job with a class attribute, ``job = "<name>"``.
        """
        return getattr(model, "job", None) == cls.name

    @classmethod  # noqa: B027  most jobs add none
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the command-line arguments for `OwnOptions` to ``visionattn infer``."""

    # Inputs

    @classmethod
    @abstractmethod
    def find(cls, inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Source]:
        """Return the input files in files, folders and globs, each once; skip those in the folder ``exclude``."""

    @classmethod
    def iterate(cls, inputs: Sequence[str | Path], exclude: Path | None = None) -> Iterator[Source]:
        """Yield the input files as `find` does; jobs for which there may be millions list them as they go."""
        yield from cls.find(inputs, exclude)

    @abstractmethod
    def read(self, source: Any) -> Any:
        """Load one input: a path, or an object in memory of a type that the job accepts.

        Raises:
            DataError: the file cannot be read.
        """

    @abstractmethod
    def sample(self, item: Any, view: View = View()) -> dict[str, Any]:
        """Return the input of the test pipeline for an item returned by `read`."""

    def test_views(self) -> list[View]:
        """Return the views of each image, see `Options.scales` and `Options.tta`; the first one is the image itself."""
        return views_of(self.options)

    def batch_key(self, item: Any) -> Any:
        """Return the batch key of an item; only items with equal keys share a batch."""
        return None

    @property
    def pixel_bytes(self) -> int:
        """Estimate of the main memory that the model needs per pixel of an image, in bytes; 0 if it is not known."""
        return 0

    def describe(self, item: Any) -> str:
        """Return a noun phrase for messages about an item, such as "an image of 640x480"."""
        return f"one {self.noun}"

    # Outputs

    @abstractmethod
    def decode(self, output: Any, item: Any) -> Any:
        """Return the typed prediction for the raw output of one item."""

    def merger(self, item: Any, views: Sequence[View], overlap: int) -> Merger:
        """Return a `Merger` for an image that is cut into tiles or predicted in several views.

        Args:
            item: the image.
            views: the views added for each tile.
            overlap: overlap of neighboring tiles in pixels.
        """
        raise ConfigError(f"predictions of {self.name} models cannot be merged")

    def attach(self, prediction: Any, item: Any) -> Any:
        """Return the prediction with the input attached, if drawing needs it."""
        return prediction

    # Results

    def draw(self, item: Any, prediction: Any) -> np.ndarray:
        """Return the overlay, BGR uint8 ``[H, W, 3]``."""
        return prediction.draw(item)

    def overlay_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the overlay of an image or frame: by default its own size."""
        return height, width

    @abstractmethod
    def record(self, prediction: Any, index: int) -> dict[str, Any]:
        """Return the JSON record of a prediction: plain values, without file names.

        Args:
            prediction: from `decode` or a `Merger`.
            index: index of the input, or of the frame in a video.
        """

    def maps(self, prediction: Any) -> dict[str, np.ndarray]:
        """Return per-pixel results by kind; see `visionattn.inference.writing.MAP_FOLDERS` for the kinds."""
        return {}

    def view(self, prediction: Any) -> str | None:
        """Return a self-contained HTML page with an interactive view of a prediction, or None if there is none."""
        return None

    def write(self, out: Path, name: str, prediction: Any) -> dict[str, Any]:
        """Write the result files of one input except the overlay, and return their entries of the record."""
        return write_maps(out, name, self.maps(prediction))

    @contextlib.contextmanager
    def run_files(self, out: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Write result files about all inputs of a run, apart from ``predictions.json``.

        Args:
            out: output folder.

        Yields:
            A function that is called with the record of each input. The files must be complete when the block ends
            without an error, and absent if it raises.
        """
        yield lambda record: None

    def count(self, prediction: Any) -> Counter:
        """Return the counts that the summary adds up over all inputs, such as detections by class."""
        return Counter(prediction.names)

    def lines(self, record: Mapping[str, Any], counts: Counter) -> list[str]:
        """Return the lines below a thumbnail in the report.

        Args:
            record: from `record`.
            counts: from `count`.
        """
        found = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        return [found or f"no detections with a score of at least {self.threshold_text}"]

    def summary(self, tally: RunTotals) -> str:
        """Return one line about all inputs of a run."""
        found = ", ".join(f"{name} {count}" for name, count in tally.found.most_common())
        total = sum(tally.found.values())
        threshold = f", score at least {self.threshold_text}" if self.thresholded else ""
        return f"detections: {total}{f' ({found})' if found else ''}{threshold}"

    def legend(self, tally: RunTotals) -> dict[str, str]:
        """Return the class names in the legend of the report, each with its text."""
        return {name: str(count) for name, count in tally.found.most_common()}

    def describe_model(self) -> dict[str, Any]:
        """Return the entries about classes and units at the top of ``predictions.json``."""
        return {"classes": list(self.classes)}

    def colors(self) -> Mapping[int, tuple[int, int, int]]:
        """Return the color (blue, green, red) of each label in overlays."""
        from visionattn.inference.draw import map_colors

        return map_colors(self.classes)

    # Other commands

    @classmethod
    def analysis(cls, data: "TestData") -> "Analysis | None":
        """Return the analysis of errors for ``visionattn test --report``, or None if the job has none."""
        return None

    @classmethod
    def recipe(cls, data: DataSummary, request: Request) -> Recipe:
        """Return how a model of this job is trained on a data set, for ``visionattn train --data``.

        Args:
            data: the data; its annotations include `trains_on`.
            request: what the user asks for, and the machine.

        Raises:
            ConfigError: the request cannot be met.
        """
        raise ConfigError(f"`task` {cls.name}: `data` cannot be used for it; give a CONFIG")

    @classmethod
    def draw_samples(cls, config: Any, split: str, number: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield names and drawn images of the first samples, for ``visionattn browse``."""
        raise ConfigError(f"training samples of {cls.name} models cannot be drawn")

    @classmethod
    def exported(cls, model: nn.Module, options: ExportOptions) -> nn.Module:
        """Return the module that ``visionattn export`` traces.

        This is a `visionattn.inference.export.FinalOutputs`, or any module from a normalized image to tensors.

        Raises:
            ConfigError: models of this job cannot be exported.
        """
        raise ConfigError(f"{cls.name} models cannot be exported")

    @classmethod
    def restored(cls, outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Any) -> Any:
        """Return the raw output of the model for one image from the outputs of an exported program, for `decode`.

        Args:
            outputs: the outputs by name, without the batch axis.
            about: the metadata entry ``decoding``.
            geometry: sizes of the image, a `visionattn.inference.onnx.model.Geometry`.

        Raises:
            ConfigError: exported models of this job cannot be run.
        """
        raise ConfigError(f"exported {cls.name} models cannot be run")


_modules: list[str] = []


def add_job_modules(names: Sequence[str]) -> None:
    """Add job packages; each has a module ``job`` with ``JOBS``, a tuple of `Job` classes.

    The modules are imported when a job is looked up. `visionattn.openmmlab` adds the jobs of this package.
    """
    _modules.extend(name for name in names if name not in _modules)


def jobs() -> list[type[Job]]:
    """Return every known job."""
    return [job for name in _modules for job in importlib.import_module(f"{name}.job").JOBS]


def job_by_name(name: str) -> type[Job]:
    """Return the job with this name: one that has been added, or one of this package.

    Raises:
        ConfigError: the name is unknown.
    """
    known = {job.name: job for job in jobs()}
    if name not in known and not _modules:  # without OpenMMLab, for which `visionattn.openmmlab` adds the jobs
        folder = importlib.import_module("visionattn.heads")
        for found in pkgutil.iter_modules(folder.__path__, "visionattn.heads."):
            known |= {job.name: job for job in importlib.import_module(f"{found.name}.job").JOBS}
    if name not in known:
        raise ConfigError(f"`task` must be one of {', '.join(sorted(known))}, got {name!r}")
    return known[name]


def job_of(model: type, config: Mapping[str, Any]) -> type[Job]:
    """Return the job of a model.

    Args:
        model: class of the model.
        config: the whole config; its ``task``, if set, names the job.

    Raises:
        ConfigError: no job accepts the model, or several do.
    """
    if config.get("task"):
        return job_by_name(config["task"])
    model_config = config.get("model") or {}
    found = [job for job in jobs() if job.matches(model, model_config)]
    if len(found) != 1:
        known = ", ".join(sorted(job.name for job in (found or jobs())))
        reason = "more than one job accepts" if found else "no job accepts"
        raise ConfigError(f"{reason} models of type {model.__name__}; set `task` in the config to one of: {known}")
    return found[0]


def views_of(options: Options) -> list[View]:
    """Return the views of each image for `Options.scales` and `Options.tta`."""
    return [View(scale, mirrored) for scale in options.scales for mirrored in (False, True)[: 1 + options.tta]]
