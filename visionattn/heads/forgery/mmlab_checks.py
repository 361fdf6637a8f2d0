"""Checks of the dataloaders in configs of forgery models."""

from collections.abc import Iterator, Mapping
from typing import Any

from visionattn.engine.config.checks import loader_check, pipeline_steps

__all__ = ["pair_problems"]


@loader_check
def pair_problems(loader: Mapping[str, Any], path: str) -> Iterator[str]:
    """Check that pairs are created by one transform, packed by another and collated by the dataloader."""
    steps = pipeline_steps(loader)
    packed = any(step.get("type") == "visionattn.PackForgeryPair" for step in steps)
    created = any(step.get("type") == "visionattn.ForgeImage" and step.get("paired") for step in steps)
    collate = loader.get("collate_fn")
    collated = isinstance(collate, Mapping) and collate.get("type") == "visionattn.collate_pairs"
    if packed and not created:
        yield f"{path}.dataset.pipeline: visionattn.PackForgeryPair requires visionattn.ForgeImage with paired=True"
    if packed != collated:
        parts = [
            f"{path}.dataset.pipeline with visionattn.PackForgeryPair",
            f"{path}.collate_fn=dict(type='visionattn.collate_pairs')",
        ]
        given, missing = parts if packed else reversed(parts)
        yield f"{given} requires {missing}"
