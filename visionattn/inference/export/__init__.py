"""Export models as ``.pt2`` (torch.export) or ``.onnx`` files.

A file is written only if the exported program gives the outputs of the model, for dynamic axes at several sizes.
Trained models are exported with everything between the pixels and the final outputs: normalization, padding, decoding
and non-maximum suppression. The outputs of each job are listed in `docs/export.md`.

- ``.pt2`` keeps the attention kernels; `visionattn` must be imported before the file is loaded.
- ``.onnx`` contains standard operators only.
"""

from visionattn.inference.export.network import Description, Network, network_of_model, network_of_run, timm_network
from visionattn.inference.export.outputs import FinalOutputs
from visionattn.inference.export.program import DYNAMIC, SUFFIXES, Export, export_model

__all__ = [
    "DYNAMIC",
    "SUFFIXES",
    "Description",
    "Export",
    "FinalOutputs",
    "Network",
    "export_model",
    "network_of_model",
    "network_of_run",
    "timm_network",
]
