"""The interface of the NATTEN library on top of the kernels of this package, on any device.

NATTEN (Hassani et al., arXiv 2204.07143, 2209.15001, 2403.04690, 2504.16922) is a library of compiled kernels. Its
versions up to 0.17 have separate operators for scores and values and a relative position bias; later ones do not, and
run on GPUs only. Here all of them run, and models that import NATTEN run without it::

    from visionattn.compat import natten

    natten.install()  # before the import of the library that needs NATTEN
    from transformers import DinatBackbone

The names in this package are those of version 0.17.5. `install` can provide those of another version, since the order
of arguments differs; see `docs/natten.md`.
"""

from visionattn.compat.natten.context import *  # noqa: F403
from visionattn.compat.natten.dense import *  # noqa: F403
from visionattn.compat.natten.functional import *  # noqa: F403
from visionattn.compat.natten.hugging_face import repair_transformers as repair_transformers
from visionattn.compat.natten.modules import NeighborhoodAttention1D as NeighborhoodAttention1D
from visionattn.compat.natten.modules import NeighborhoodAttention2D as NeighborhoodAttention2D
from visionattn.compat.natten.modules import NeighborhoodAttention3D as NeighborhoodAttention3D
from visionattn.compat.natten.old_names import *  # noqa: F403
from visionattn.compat.natten.registration import VERSION as VERSION
from visionattn.compat.natten.registration import install as install
from visionattn.compat.natten.registration import uninstall as uninstall

__version__ = VERSION
