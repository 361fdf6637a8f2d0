"""Changes to OpenMMLab that the commands and the training functions of this package rely on; see `install`."""

import os
import warnings

__all__ = ["install"]

# Deprecation warnings raised inside OpenMMLab, pycocotools and PyTorch, which a user cannot act on.
IGNORED_WARNINGS = (
    r".*pkg_resources.*",
    r".*torch\.jit.*",
    r".*__array__.*copy.*",
    r".*torch\.meshgrid.*",
    r".*torch\.cuda\.amp.*",
    r".*`Visualizer` backend is not initialized.*",
)


def install() -> None:
    """Apply the changes to OpenMMLab that this package's commands need. Calling it again has no further effect.

    `visionattn.engine.train.train.train`, `visionattn.engine.train.testing.test` and the commands call it. Programs
    that use the registered types with their own mmengine ``Runner`` do not need it. It affects the whole process:

    - ``mmengine.runner.CheckpointLoader``: the loaders of all registered schemes, and ``load_from_local`` and
      ``load_from_http`` of ``mmengine.runner.checkpoint``, read files with ``weights_only=True`` and additional checks
      (`visionattn.engine.compat.checkpoint.load`). Schemes of internal file systems are refused.
    - ``save_checkpoint`` in mmengine's modules writes plain values only, atomically
      (`visionattn.engine.compat.checkpoint.write`).
    - the initializer ``Pretrained``: converts published names and checks that models are loaded completely
      (`visionattn.engine.compat.pretrained.Pretrained`).
    - ``sys.modules``: adds ``panopticapi``, ``panopticapi.utils`` and ``panopticapi.evaluation`` if that package is
      not installed, and sets the names that already imported modules of mmdet would have taken from it
      (`visionattn.engine.compat.panopticapi`).
    - ``mmdet.datasets.api_wrappers.COCO.get_cat_ids``: returns ids in the order of the requested names, so that labels
      follow the classes in ``metainfo`` (`visionattn.engine.compat.category_order`).
    - ``LoadImageFromFile`` in the registry of transforms: reads images as inference does
      (`visionattn.engine.compat.images`).
    - ``mmcv.imrescale`` and the transform ``Resize``: keep at least one pixel on each side
      (`visionattn.engine.compat.resizing`); loading a model for prediction makes this change, too.
    - ``mmengine.Config.pretty_text``: caches the text of the last config, which takes seconds to format.
    - ``warnings.filters``: ignores the deprecation warnings listed in `IGNORED_WARNINGS`.
    - ``os.environ``: sets ``NO_ALBUMENTATIONS_UPDATE=1`` unless it has a value, so that importing albumentations does
      not query PyPI.

    Raises:
        MissingDependencyError: OpenMMLab is not installed.
    """
    from visionattn.engine.compat import (
        category_order,
        checkpoint,
        config_text,
        images,
        panopticapi,
        pretrained,
        resizing,
    )

    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    for pattern in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    checkpoint.install()
    pretrained.install()
    panopticapi.install()
    config_text.install()
    category_order.install()
    images.install()
    resizing.install()
