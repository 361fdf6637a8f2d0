"""Inference with trained models: `Predictor`, and the typed predictions it returns."""

from visionattn.inference.options import Options
from visionattn.inference.predictor import Predictor
from visionattn.inference.results import InstanceMasks, Panoptic, Prediction

__all__ = ["InstanceMasks", "Options", "Panoptic", "Prediction", "Predictor"]
