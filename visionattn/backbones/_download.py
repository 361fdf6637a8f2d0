"""Pretrained weights of timm models, and where they are stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
from timm.models import resolve_pretrained_cfg
from torch import nn

from visionattn.errors import CheckpointError
from visionattn.io.cache import fetch, name_of

__all__ = ["create_model", "with_cached_weights"]


def with_cached_weights(variant: str, pretrained: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of timm's builder for which pretrained weights are those in the cache of this package.

    timm stores a file under the last part of its address. For all BiFormer models that is ``content``, so the second
    model would get the weights of the first. Here the name of the file is that of the model, with its tag.

    Args:
        variant: name of the model without a tag.
        pretrained: load pretrained weights; they are downloaded if necessary.
        options: options of ``build_model_with_cfg``. Weights that these name (``file``, ``state_dict``, ``hf_hub_id``)
            take precedence; ``cache_dir`` is the folder of the file.

    Raises:
        CheckpointError: the weights cannot be downloaded; see `visionattn.io.cache.fetch`.
    """
    if not pretrained:
        return dict(options)
    overlay = options.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(variant, options.get("pretrained_cfg"), overlay)
    if not cfg.url or cfg.file or cfg.state_dict or cfg.hf_hub_id:
        return dict(options)
    url, folder = str(cfg.url), options.get("cache_dir")
    known = {entry.url: tag for tag, entry in timm.models.get_arch_pretrained_cfgs(variant).items()}
    name = f"{known[url]}.pth" if url in known else name_of(url)
    file = fetch([url], name, folder=Path(folder) if folder else None, instead="use a local file")
    return {**options, "pretrained_cfg_overlay": {**overlay, "file": str(file)}}


def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """Return ``timm.create_model(name, pretrained, **options)``, with a message that helps if the download fails.

    Args:
        name: model name of timm, with or without a tag.
        pretrained: download pretrained weights.
        **options: further arguments of ``timm.create_model``.

    Raises:
        CheckpointError: the weights cannot be downloaded; the message has the address and where to put the file.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:  # URLError of urllib, and the errors of huggingface_hub for a missing connection
        reason = getattr(error, "reason", None) if isinstance(error, URLError) else error
        text = (" ".join(str(reason).split()) or type(error).__name__)[:200]
        raise CheckpointError(
            f"{name}: the pretrained weights cannot be downloaded ({text}); {_remedy(name)}"
        ) from error


def _remedy(name: str) -> str:
    """Return where the weights are, and where to put a file that was downloaded on another machine."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return "use a local file"
    if config.hf_hub_id:
        return f"download them from https://huggingface.co/{config.hf_hub_id} on another machine and use the local file"
    if not config.url:
        return "use a local file"
    place = Path(torch.hub.get_dir(), "checkpoints", config.url.rsplit("/", 1)[-1].split("?")[0])
    return f"download {config.url} on another machine and save it as {place}, or use the local file"
