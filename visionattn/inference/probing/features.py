"""Features of a frozen backbone for all images, computed once and kept in files."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from visionattn.errors import DataError
from visionattn.inference.writing import temporary_name
from visionattn.io.images import read_image
from visionattn.io.json import read_json

__all__ = ["Features", "extract_features", "fingerprint"]


@dataclass(frozen=True)
class Features:
    """Features of N images in K views, float16; the first view of an image is the one for testing.

    Attributes:
        pooled: input of the classifier of the model, ``[N, K, C]``.
        tokens: tokens before pooling, without class and register tokens, ``[N, K, T, C]``; mapped from a file.
        grid: (rows, columns) of the tokens, or None if they are not a map.
    """

    pooled: np.ndarray
    tokens: np.ndarray
    grid: tuple[int, int] | None


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the weights of a model, so that its features are not mistaken for those of others."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def extract_features(
    model: nn.Module,
    files: Sequence[Path],
    folder: Path,
    views: int = 1,
    size: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int], Any] = lambda count: None,
) -> Features:
    """Return the features of images, from the files of an earlier call if there are any for this model and images.

    The first view is timm's transform for evaluation with the mean, deviation, crop and interpolation of the model.
    Further ones are random crops of 8 to 100 % of the area, half of them mirrored, drawn with the number of the image
    as seed.

    Args:
        model: timm model in eval mode, with ``forward_features`` and ``forward_head``.
        files: the images.
        folder: folder for the files; it is created.
        views: number of views of each image.
        size: side of the input in pixels; None is that of the model.
        batch_size: images per forward pass.
        progress: called with the number of images after each batch.

    Raises:
        DataError: an image cannot be read.
    """
    key = {
        "model": fingerprint(model), "views": views, "size": size,
        "files": [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files],
    }  # fmt: skip
    paths = {name: folder / f"{name}.npy" for name in ("pooled", "tokens")}
    record = folder / "features.json"
    if record.is_file() and (known := read_json(record)).get("key") == json.loads(json.dumps(key)):
        grid = known["grid"]
        progress(len(files))
        return Features(np.load(paths["pooled"]), np.load(paths["tokens"], "r"), tuple(grid) if grid else None)
    folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    plain, varied = _transforms(model, size)
    device = next(model.parameters()).device
    arrays: dict[str, np.ndarray] = {}
    temporary = {name: temporary_name(path) for name, path in paths.items()}
    grid: tuple[int, int] | None = None
    per_batch = max(1, batch_size // views)
    for start in range(0, len(files), per_batch):
        part = files[start : start + per_batch]
        images = [_views(file, start + index, plain, varied, views) for index, file in enumerate(part)]
        pooled, tokens, grid = _forward(model, torch.cat(images).to(device))
        for name, values in (("pooled", pooled), ("tokens", tokens)):
            if name not in arrays:
                shape = (len(files), views, *values.shape[1:])
                arrays[name] = np.lib.format.open_memmap(temporary[name], "w+", np.float16, shape)
            values = values.unflatten(0, (-1, views)).cpu().clamp(-65504, 65504)
            arrays[name][start : start + len(part)] = values.to(torch.float16).numpy()
        progress(len(part))
    for name, path in paths.items():
        arrays.pop(name).flush()
        temporary[name].replace(path)
    record.write_text(json.dumps({"key": key, "grid": grid}), encoding="utf-8")
    return Features(np.load(paths["pooled"]), np.load(paths["tokens"], "r"), grid)


def _transforms(model: nn.Module, size: int | None) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    given = {} if size is None else {"input_size": (3, size, size)}
    cfg = resolve_data_config(given, pretrained_cfg=getattr(model, "pretrained_cfg", None) or {})
    shared = {name: cfg[name] for name in ("input_size", "mean", "std", "interpolation")}
    plain = create_transform(**shared, crop_pct=cfg["crop_pct"], is_training=False)
    varied = create_transform(**shared, is_training=True, color_jitter=None, hflip=0.5, scale=(0.08, 1.0))
    return plain, varied


def _views(file: Path, number: int, plain: Any, varied: Any, views: int) -> Tensor:
    """Return the views of an image, ``[K, 3, H, W]``."""
    try:
        image = Image.fromarray(np.ascontiguousarray(read_image(file)[..., ::-1]))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    found = [plain(image)]
    if views > 1:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            state = random.getstate()
            random.seed(number)  # timm's crops use both generators
            found += [varied(image) for _ in range(views - 1)]
            random.setstate(state)
    return torch.stack(found)


@torch.inference_mode()
def _forward(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int] | None]:
    """Return pooled features ``[B, C]``, tokens ``[B, T, C]`` and the grid of the tokens."""
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True).flatten(1)
    if features.dim() == 4:
        if str(getattr(getattr(model, "output_fmt", None), "value", getattr(model, "output_fmt", ""))) != "NHWC":
            features = features.permute(0, 2, 3, 1)
        return pooled, features.flatten(1, 2), tuple(features.shape[1:3])
    tokens = features[:, int(getattr(model, "num_prefix_tokens", 0) or 0) :]
    embed = getattr(model, "patch_embed", None)
    grid = tuple(embed.dynamic_feat_size(images.shape[-2:])) if hasattr(embed, "dynamic_feat_size") else None
    return pooled, tokens, grid if grid and grid[0] * grid[1] == tokens.shape[1] else None
