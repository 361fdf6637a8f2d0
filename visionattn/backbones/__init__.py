"""Backbones, one file per family. Importing this package registers them with timm."""

from visionattn.backbones import biformer as biformer
from visionattn.backbones import davit as davit
from visionattn.backbones import dinat as dinat
from visionattn.backbones import dinat_hybrid as dinat_hybrid
from visionattn.backbones import dinat_isotropic as dinat_isotropic
from visionattn.backbones import dinat_s as dinat_s
from visionattn.backbones import pose_vit as pose_vit
from visionattn.backbones import scatterformer as scatterformer
from visionattn.backbones import timesformer as timesformer
from visionattn.backbones._neighborhood import DILATION_PRESETS, resolve_dilations
from visionattn.backbones._weights import LoadReport, load_official

__all__ = ["DILATION_PRESETS", "LoadReport", "load_official", "resolve_dilations"]
