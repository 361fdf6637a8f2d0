"""The only package, with the ``mmlab`` modules of the jobs, that imports mmengine, mmcv, mmdet and mmseg.

Importing it supplies mmcv's compiled operators where they are missing (`visionattn.engine.compat.ops`): without them
neither mmdet nor mmseg can be imported. `visionattn.engine.compat.install` makes all other changes to OpenMMLab.
"""

from visionattn.engine.compat import ops
from visionattn.errors import require

require("mmengine")
ops.install()
