"""Trained models on new pictures: `Predictor`, and the typed `Prediction` it returns."""

from visionattn.inference.predictor import Options, Predictor
from visionattn.inference.results import InstanceMasks, Panoptic, Prediction

__all__ = ["InstanceMasks", "Options", "Panoptic", "Prediction", "Predictor"]
