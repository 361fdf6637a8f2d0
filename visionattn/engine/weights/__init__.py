"""Load whole checkpoints into models: published names, differences by part, and class layers of another size.

`fit` is used by every command and by ``load_from``; `convert` only renames.
"""

from visionattn.engine.weights.convert import Converted, convert
from visionattn.engine.weights.fit import FitReport, fit

__all__ = ["Converted", "FitReport", "convert", "fit"]
