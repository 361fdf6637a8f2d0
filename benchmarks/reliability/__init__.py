"""Faults on purpose, and what becomes of a run: ``python -m benchmarks.reliability`` from a clone."""

import os
import warnings

# before PyTorch is imported; forked processes must not share its threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
warnings.filterwarnings("ignore")
