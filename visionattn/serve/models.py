"""The models of a server, and the predictors for the options of its requests."""

import dataclasses
import json
import threading
import typing
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import ConfigError
from visionattn.inference.options import Options, pick_device
from visionattn.inference.predictor import Predictor
from visionattn.inference.tiling import tile_grid
from visionattn.zoo import find_model, given_file, model_names, resolve

__all__ = ["Limits", "ServedModel", "check_passes", "load_models"]

REQUEST_OPTIONS = ("score_thr", "tile", "overlap", "tta", "scales", "opacity", "line_width", "hide_labels")
"""Fields of `Options` that a request may set."""
PREDICTORS = 16
"""Number of predictors with other options that are kept for each model; they share its weights."""
TITLES = {
    "instance": "instance segmentation", "semantic": "semantic segmentation", "panoptic": "panoptic segmentation",
    "forgery": "forgery detection", "points": "detection in point clouds", "action": "action recognition",
}  # fmt: skip
"""Names of jobs in menus; others are readable as they are."""
SMALLEST_TILE = 128
MOST_SCALES, LARGEST_SCALE = 5, 2.0
MOST_PASSES = 512
"""Forward passes at the test size for one image; a view at scale s counts as s * s passes."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_bytes: size of a request in bytes.
        max_pixels: height times width of an image.
        max_files: number of files in a request.
        queue: number of files that are read, waiting or being predicted at one time; further requests are rejected.
        timeout: seconds after which a request is answered with an error.
        batch_size: number of files that one call of a model predicts.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    max_files: int = 16
    queue: int = 64
    timeout: float = 60.0
    batch_size: int = Options.batch_size

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:  # NaN fails too
                raise ConfigError(f"`{name}` must be greater than 0, got {value}")
        if self.max_files > self.queue:
            raise ConfigError(f"`max_files` must be at most `queue`, got {self.max_files} and {self.queue}")


@dataclass
class ServedModel:
    """A trained model of the server.

    Attributes:
        name: its name in requests.
        source: name of the method of `Predictor` that loads it, for examples of code.
        predictor: the model with the default options.
        sample: an image to try it on, or None.
        about: a sentence about it, or an empty text.
    """

    name: str
    source: str
    predictor: Predictor
    sample: Path | None = None
    about: str = ""
    _others: "OrderedDict[str, Predictor]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        own = dataclasses.fields(self.predictor.job.OwnOptions)
        # only numbers: others name files of the server, or ask for result files
        self._own = {option.name: option.type for option in own if _is_number(option.type)}

    @property
    def options(self) -> list[str]:
        """Names of the options that a request may set."""
        job = self.predictor.job
        used = {
            "score_thr": job.thresholded, "tile": job.tiles, "overlap": job.tiles, "tta": job.views,
            "scales": job.views and not job.overlay_is_result,
            "opacity": job.styled, "line_width": job.styled, "hide_labels": job.styled,
        }  # fmt: skip
        return [*(name for name in REQUEST_OPTIONS if used[name]), *self._own]

    @property
    def attends(self) -> bool:
        """Whether the model has a backbone that takes images, whose attention can be shown."""
        return hasattr(self.predictor.model.model, "backbone") and self.predictor.job.noun == "image"

    def predictor_for(self, given: Mapping[str, Any]) -> Predictor:
        """Return a predictor with the options of a request.

        Args:
            given: values by name, of `REQUEST_OPTIONS` or numbers of the job.

        Raises:
            ConfigError: an option is unknown, out of range, or not supported by the model.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            return self.predictor
        key = json.dumps(given, sort_keys=True)
        with self._lock:
            if key not in self._others:
                self._others[key] = self._create(given)
                while len(self._others) > PREDICTORS:
                    self._others.popitem(last=False)
            self._others.move_to_end(key)
            return self._others[key]

    def _create(self, given: dict[str, Any]) -> Predictor:
        known = {*REQUEST_OPTIONS, *self._own}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ConfigError(
                f"`{unknown[0][:80]}` is not an option of requests; known options: {', '.join(sorted(known))}"
            )
        for name, kind in self._own.items():
            if name in given:
                given[name] = _number(name, given[name], kind)
        _check_work(given)
        default = self.predictor.options
        fixed = {"max_pixels": default.max_pixels, "batch_size": default.batch_size}
        return Predictor.from_model(self.predictor.model, type(self.predictor.job), **fixed, **given)

    def describe(self) -> dict[str, Any]:
        """Return the entry of the list of models: what it predicts, classes with colors, and options."""
        job = self.predictor.job
        colors = job.colors()
        return {
            "name": self.name,
            "task": job.name,
            "title": TITLES.get(job.name, job.name.replace("_", " ")),
            "input": job.noun,
            "records": job.records,
            "about": self.about,
            "source": self.source,
            "classes": list(self.predictor.classes),
            "colors": [None if label not in colors else list(colors[label][::-1]) for label in range(len(job.classes))],
            "options": self.options,
            "score_thr": self.predictor.options.score_thr if job.thresholded else None,
            "sample": self.sample is not None,
            "attention": self.attends,
            **job.describe_model(),
        }


def _is_number(kind: Any) -> bool:
    return set(typing.get_args(kind) or (kind,)) <= {int, float, type(None)}


def _number(name: str, value: Any, kind: Any) -> int | float:
    whole = float not in (typing.get_args(kind) or (kind,))
    try:
        return int(value) if whole else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"`{name}` must be {what}, got {value!r:.40}") from error


def _check_work(given: Mapping[str, Any]) -> None:
    """Reject options with which one image would take very long."""
    tile, scales = given.get("tile"), given.get("scales") or ()
    if isinstance(tile, int) and tile < SMALLEST_TILE:
        raise ConfigError(f"`tile` must be at least {SMALLEST_TILE} pixels in requests, or auto, got {tile}")
    if given.get("overlap") is not None and isinstance(tile, int) and not 0 <= given["overlap"] <= tile // 2:
        raise ConfigError(
            f"`overlap` must be from 0 to {tile // 2} pixels, half of `tile`, in requests, got {given['overlap']}"
        )
    if given.get("overlap") is not None and tile == "auto":
        raise ConfigError("`overlap` requires a number for `tile` in requests")
    if len(scales) > MOST_SCALES or any(scale > LARGEST_SCALE for scale in scales):
        raise ConfigError(
            f"`scales` must be at most {MOST_SCALES} numbers up to {LARGEST_SCALE:g} in requests, "
            f"got {list(scales)!r:.80}"
        )


def check_passes(predictor: Predictor, item: Any) -> None:
    """Reject an image that takes too many forward passes with the options of a request.

    Args:
        predictor: the predictor with these options.
        item: the input, as read by the job.

    Raises:
        ConfigError: there are more than `MOST_PASSES`.
    """
    tile, overlap = predictor.options.tile, predictor.options.overlap
    if not isinstance(item, np.ndarray):
        return
    tiles = 1 if tile is None else len(tile_grid(*item.shape[:2], tile, overlap or 0))
    passes = tiles * sum(view.scale**2 for view in predictor.job.test_views())
    if passes > MOST_PASSES:
        raise ConfigError(
            f"`tile` {tile} with these options takes {passes:.0f} forward passes for an image of "
            f"{item.shape[1]}x{item.shape[0]} pixels, more than {MOST_PASSES}; use larger tiles, a smaller `overlap`, "
            f"or fewer `scales`"
        )


def load_models(
    names: Sequence[str], runs: Sequence[str | Path], device: str | None, limits: Limits
) -> dict[str, ServedModel]:
    """Load models by name and those of training runs; without any, all models of the package.

    Args:
        names: of `visionattn.zoo.known_names`.
        runs: folders of training runs; their names are those of the folders, with a number if one exists already.
        device: device of all models, see `pick_device`.
        limits: limits of the server.

    Raises:
        ConfigError: a name is unknown, a folder is not one of a run, or the device is not available.
        CheckpointError: weights cannot be downloaded or read, or do not fit.
    """
    options = {"max_pixels": limits.max_pixels, "batch_size": limits.batch_size}
    where = pick_device(device)
    found: dict[str, ServedModel] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of OpenMMLab
        # the page shows the first model, which should have a sample image
        shown = sorted(model_names(), key=lambda name: find_model(name).sample is None)
        for name in dict.fromkeys(names if names or runs else shown):
            with given_file(name, None):
                predictor = Predictor(*resolve(name), where, **options)
            shipped = find_model(name) if name in model_names() else None
            more = (
                () if shipped is None else (shipped.sample, " ".join(filter(None, (shipped.summary, shipped.warning))))
            )
            found[name] = ServedModel(name, "from_pretrained", predictor, *more)
        for run in runs:
            stem = Path(run).expanduser().resolve().name
            name, number = stem, 2
            while name in found:
                name, number = f"{stem}-{number}", number + 1
            found[name] = ServedModel(name, "from_run", Predictor.from_run(run, where, **options))
    return found
