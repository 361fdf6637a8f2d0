"""The backbones of this package, from the registry of timm, with their published accuracy."""

from dataclasses import dataclass

import timm

import visionattn.backbones  # noqa: F401  registers the models
from visionattn.io.links import link_note

__all__ = ["TOP1", "PublishedBackbone", "all_backbones", "published_backbones"]

TIMM_DAVIT = ("davit_tiny.msft_in1k", "davit_small.msft_in1k", "davit_base.msft_in1k", "davit_large")
NAT, DINAT, BIFORMER, DAVIT = "2204.07143", "2209.15001", "2303.08810", "2204.03645"

TOP1: dict[str, tuple[float, str]] = {
    "nat_mini.in1k": (81.8, NAT),
    "nat_tiny.in1k": (83.2, NAT),
    "nat_small.in1k": (83.7, NAT),
    "nat_base.in1k": (84.3, NAT),
    "dinat_mini.in1k": (81.8, DINAT),
    "dinat_tiny.in1k": (82.7, DINAT),
    "dinat_small.in1k": (83.8, DINAT),
    "dinat_base.in1k": (84.4, DINAT),
    "dinat_large.in22k_ft_in1k_224": (86.6, DINAT),
    "dinat_large.in22k_ft_in1k_384": (87.4, DINAT),
    "dinat_large_11x11.in22k_ft_in1k_384": (87.5, DINAT),
    "dinat_s_tiny.in1k": (81.8, DINAT),
    "dinat_s_small.in1k": (83.5, DINAT),
    "dinat_s_base.in1k": (83.8, DINAT),
    "dinat_s_large.in22k_ft_in1k_224": (86.5, DINAT),
    "dinat_s_large.in22k_ft_in1k_384": (87.4, DINAT),
    "nat_isotropic_small.in1k": (80.0, DINAT),
    "nat_isotropic_base.in1k": (81.6, DINAT),
    "dinat_isotropic_small.in1k": (80.8, DINAT),
    "dinat_isotropic_base.in1k": (82.1, DINAT),
    "vitrpb_small.in1k": (81.2, DINAT),
    "vitrpb_base.in1k": (82.5, DINAT),
    "biformer_tiny.in1k": (81.4, BIFORMER),
    "biformer_small.in1k": (83.8, BIFORMER),
    "biformer_base.in1k": (84.3, BIFORMER),
    "biformer_stl.in1k": (82.7, BIFORMER),
    "biformer_stl.nchw_in1k": (82.7, BIFORMER),
    "davit_tiny.msft_in1k": (82.8, DAVIT),
    "davit_small.msft_in1k": (84.2, DAVIT),
    "davit_base.msft_in1k": (84.6, DAVIT),
}
"""Published ImageNet-1k top-1 accuracy, and the arXiv number of the paper."""


@dataclass(frozen=True)
class PublishedBackbone:
    """A backbone with released weights, which ``timm.create_model(name, pretrained=True)`` loads.

    Attributes:
        name: model name with the tag of the weights.
        classes: number of classes of its classifier.
        top1: published ImageNet-1k top-1 accuracy, not measured here, if there is one.
        paper: address of the paper, or an empty text.
        repository: address of the authors' code.
        code_license: license of the authors' code.
        url: address of the weights.
        weights_license: license of the weights, if it is stated.
    """

    name: str
    classes: int
    top1: float | None
    paper: str
    repository: str
    code_license: str
    url: str
    weights_license: str

    @property
    def note(self) -> str:
        """What is known of the address, or an empty text."""
        return link_note(self.url)


def all_backbones() -> list[str]:
    """Return the names of all registered models of this package with their tags, and of timm's DaViT."""
    names: list[str] = []
    for name in timm.list_models():
        if timm.models.model_entrypoint(name).__module__.startswith("visionattn."):
            names += timm.models.get_arch_pretrained_cfgs(name) or [name]
    return [*sorted(names), *TIMM_DAVIT]


def published_backbones() -> dict[str, PublishedBackbone]:
    """Return the backbones with released weights by name."""
    found = {}
    for name in all_backbones():
        cfg = timm.get_pretrained_cfg(name)
        if cfg is None or not (cfg.url or cfg.hf_hub_id):
            continue
        top1, paper = TOP1.get(name, (None, ""))
        found[name] = PublishedBackbone(
            name=name,
            classes=cfg.num_classes,
            top1=top1,
            paper=f"https://arxiv.org/abs/{paper}" if paper else "",
            repository=cfg.origin_url or "https://github.com/dingmyu/davit",  # timm states none for DaViT
            code_license="MIT",
            url=f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors" if cfg.hf_hub_id else str(cfg.url),
            # the license of a cfg without hub is that of the code
            weights_license=(cfg.license if cfg.hf_hub_id else None) or "not stated",
        )
    return found
