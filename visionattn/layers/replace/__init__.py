"""Replace the attention of timm models, keep the weights that fit, and load official checkpoints of such models."""

from visionattn.layers.replace.attention import ATTENTIONS, replace_attention
from visionattn.layers.replace.official import CONVERTED, filter_official
from visionattn.layers.replace.report import ReplaceReport

__all__ = ["ATTENTIONS", "CONVERTED", "ReplaceReport", "filter_official", "replace_attention"]
