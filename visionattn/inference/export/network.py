"""The networks that are exported: models of timm, and trained models with everything around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.errors import CheckpointError, ConfigError, summary
from visionattn.inference.export.outputs import FinalOutputs
from visionattn.inference.export.resizing import resize_image
from visionattn.inference.options import ExportOptions
from visionattn.io.weights import read
from visionattn.kernels.exporting import any_symbolic, pad_end

__all__ = ["Description", "Network", "image_size", "network_of_model", "network_of_run", "timm_network"]

TIMM_SIZE = 224
LANDSCAPE = 2.5  # larger ratios of the limits of a test image are not those of images


@dataclass(frozen=True)
class Description:
    """What a file says about its model.

    Attributes:
        task: name of the job, or ``"classification"`` or ``"features"`` for models of timm.
        classes: class names by label.
        palette: RGB color of each class, or None.
        category_ids: id of each class in COCO files, or None.
        pipeline: the steps of the test pipeline that change pixels, as in the config; None if they cannot be repeated
            without OpenMMLab.
        skipped: type of the step that cannot be repeated, or None.
        config: name of the config.
        license: license of the weights, or None.
        image_size: shorter and longer side in pixels of the images that it was trained or tested on, or None.
    """

    task: str = "features"
    classes: tuple[str, ...] = ()
    palette: Sequence[Sequence[int]] | None = None
    category_ids: tuple[int, ...] | None = None
    pipeline: Sequence[Mapping[str, Any]] | None = None
    skipped: str | None = None
    config: str | None = None
    license: str | None = None
    image_size: tuple[int, int] | None = None


class Network(nn.Module):
    """Module that is exported: maps an image tensor to a tuple of tensors.

    Args:
        model: a `FinalOutputs`, or any module that is called with the normalized image.
        mean, std: normalization of each channel; None for models that take normalized images.
        size: (height, width) that the model is used with, in pixels; None if it is not known.
        divisor: images are zero-padded at the bottom and right to multiples of this number, after normalization.
        bgr: the model takes BGR images; the program of a `FinalOutputs` takes RGB nevertheless.
        dtype: dtype of the image, ``torch.float32`` or ``torch.uint8``.
        resize: steps of the test pipeline that the program applies to the image, see
            `visionattn.inference.export.resizing`; only for a `FinalOutputs`.
        description: for the metadata of the file.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: tuple[int, int] | None = None,
        divisor: int = 1,
        bgr: bool = False,
        dtype: torch.dtype = torch.float32,
        resize: Sequence[Mapping[str, Any]] | None = None,
        description: Description = Description(),
    ):
        super().__init__()
        self.model, self.size, self.divisor, self.bgr, self.dtype = model, size, divisor, bgr, dtype
        self.description, self.resize = description, resize
        self.final = isinstance(model, FinalOutputs)
        self.thresholds = dict(model.thresholds) if self.final else {}
        self.names = tuple(model.names) if self.final else ()
        self.normalized = mean is not None
        if mean is not None:
            self.register_buffer("pixel_mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
            self.register_buffer("pixel_std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        for name, value in self.thresholds.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    def forward(self, image: Tensor, *thresholds: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the model; nested outputs are flattened.

        Args:
            image: ``[B, C, H, W]``, RGB.
            *thresholds: values in place of the defaults, in the order of ``thresholds``.
        """
        return self.outputs(self.resized(image), image.shape[2:] if self.resize else None, *thresholds)

    def resized(self, image: Tensor) -> Tensor:
        """Return the image after the steps of ``resize``, float32; without them, the image."""
        return resize_image(image, self.resize) if self.resize else image

    def outputs(self, image: Tensor, original: Sequence[int] | None, *thresholds: Tensor) -> tuple[Tensor, ...]:
        """As `forward`, after the steps of ``resize``.

        Args:
            image: ``[B, C, h, w]``.
            original: (height, width) before these steps, to which the outputs refer; None without such steps.
            *thresholds: see `forward`.
        """
        size = tuple(image.shape[2:])
        if image.dtype == torch.uint8:
            image = image.float()
        if self.bgr and self.final:
            image = image[:, [2, 1, 0]]
        if self.normalized:
            image = (image - self.pixel_mean) / self.pixel_std
        image = _pad(image, self.divisor)
        if not self.final:
            return tuple(_flat(self.model(image)))
        given = thresholds or tuple(getattr(self, name) for name in self.thresholds)
        return tuple(self.model(image, size, size if original is None else tuple(original), *given))


def _pad(image: Tensor, divisor: int) -> Tensor:
    if divisor == 1:
        return image
    height, width = image.shape[2:]
    target = [(side + divisor - 1) // divisor * divisor for side in (height, width)]
    if any_symbolic(target):
        return pad_end(image, [image.shape[1], *target])
    return F.pad(image, (0, target[1] - width, 0, target[0] - height))


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _flat(item)]


def timm_network(
    name: str, checkpoint: str | Path | None = None, features: bool = False, num_classes: int | None = None
) -> Network:
    """Create the network of a timm model, which returns the logits of the classifier.

    Args:
        name: model name for `timm.create_model`.
        checkpoint: weights file as published by the authors, or as saved by timm or this package; None keeps the random
            initialization.
        features: return the feature maps of all levels in place of logits.
        num_classes: number of classes; None is the default of the model.

    Raises:
        ConfigError: the model name is unknown, or the model does not support `features`.
        CheckpointError: the checkpoint cannot be read safely, or does not fit the model.
    """
    import timm

    import visionattn  # noqa: F401  registers the backbones
    from visionattn.backbones import load_official

    options = {"features_only": True} if features else {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = timm.create_model(name, **options)
    except (RuntimeError, OSError, ValueError) as error:  # also of names on Hugging Face without a network
        reason = summary(error)
        known = "`visionattn models` lists the trained models, and timm.list_models() the others"
        raise ConfigError(f"{name}: no model can be created with this name ({reason}); {known}") from error
    if checkpoint is not None:
        state = _read(Path(checkpoint))
        try:
            load_official(model, state)
        except TypeError:  # a model of timm itself, with its parameter names
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                raise CheckpointError(f"{checkpoint}: does not fit {name} ({str(error).splitlines()[-1]})") from error
    cfg = getattr(getattr(model, "model", model), "pretrained_cfg", None) or {}
    size = tuple(cfg.get("input_size") or (3, TIMM_SIZE, TIMM_SIZE))[1:]
    description = Description("features" if features else "classification")
    return Network(model.eval(), size=size, description=description)


def _read(path: Path) -> dict[str, Tensor]:
    loaded = read(path)
    for key in ("state_dict", "model"):
        if isinstance(loaded.get(key), dict):
            return loaded[key]
    return loaded


def network_of_run(
    config: Any,
    checkpoint: str | Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  immutable
) -> Network:
    """Return the network of a trained model from pixels to final outputs, which its job defines.

    Raises:
        ConfigError: the model cannot be exported.
    """
    from visionattn.engine.model import load_model

    return network_of_model(load_model(config, checkpoint), options)


def network_of_model(loaded: Any, options: ExportOptions = ExportOptions()) -> Network:  # noqa: B008  immutable
    """As `network_of_run`, for a loaded model (`visionattn.engine.model.LoadedModel`)."""
    from visionattn.inference.decoding import category_ids
    from visionattn.inference.export.preprocessing import pixel_steps
    from visionattn.inference.job import job_of
    from visionattn.inference.tile_size import known_size

    job = job_of(type(loaded.model), loaded.cfg)
    module, prepare = job.exported(loaded.model, options), getattr(loaded.model, "data_preprocessor", None)
    mean, std = (getattr(prepare, name, None) for name in ("mean", "std"))
    numbers = [None if value is None else value.flatten().tolist() for value in (mean, std)]
    steps, skipped = pixel_steps(loaded.cfg)
    if options.resize and (skipped or not steps):
        reason = f"has the step {skipped}, which exported programs do not support" if skipped else "does not resize"
        raise ConfigError(f"`resize` is not possible: the test pipeline {reason}")
    description = Description(
        task=job.name,
        classes=tuple(loaded.classes),
        palette=loaded.palette,
        category_ids=category_ids(loaded.cfg, tuple(loaded.classes)) or loaded.category_ids,
        pipeline=None if skipped else steps,
        skipped=skipped,
        config=Path(loaded.cfg.filename).name if getattr(loaded.cfg, "filename", None) else None,
        license=options.license,
        image_size=known_size(loaded.cfg, loaded.meta),
    )
    return Network(
        module.eval(), *numbers, image_size(loaded.cfg), _divisor(loaded.cfg),
        bgr=prepare is not None and not getattr(prepare, "_channel_conversion", True),
        dtype=torch.uint8 if options.uint8 else torch.float32,
        resize=steps if options.resize else None,
        description=description,
    ).eval()  # fmt: skip


def _divisor(config: Mapping[str, Any]) -> int:
    prepare = (config.get("model") or {}).get("data_preprocessor") or {}
    return int(prepare.get("pad_size_divisor") or (prepare.get("test_cfg") or {}).get("size_divisor") or 1)


def image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) to which a config resizes its test images, a multiple of the padding of the model.

    Where the ratio of an image is kept, this is the size of a landscape image that fills the limits; limits that only
    bound the shorter side give a square. None if test images are not resized.
    """
    loader = config.get("test_dataloader") or config.get("val_dataloader") or {}
    dataset = loader.get("dataset") or {}
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    height = width = None
    for step in dataset.get("pipeline") or ():
        kind = str(step.get("type", "")).rpartition(".")[2]
        if kind == "Resize" and step.get("scale") is not None:
            scale = step["scale"]
            width, height = (scale, scale) if isinstance(scale, int) else (int(scale[0]), int(scale[1]))
            if step.get("keep_ratio"):
                height, width = min(height, width), max(height, width)
                width = width if width <= LANDSCAPE * height else height
        elif "Crop" in kind and isinstance(step.get("size"), int):
            height = width = step["size"]
    if height is None:
        return None
    divisor = _divisor(config)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor
