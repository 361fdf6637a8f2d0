"""Analysis of the errors of a model on test data, for ``visionattn test --report``."""

from visionattn.inference.analysis.base import Analysis, Findings, Section, TestData
from visionattn.inference.analysis.recorder import Recorder

__all__ = ["Analysis", "Findings", "Recorder", "Section", "TestData"]
