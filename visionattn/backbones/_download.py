"""Models with pretrained weights that timm downloads."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
from torch import nn

from visionattn.errors import CheckpointError

__all__ = ["create_model"]


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
