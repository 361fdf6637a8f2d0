"""Long strips are resized to at least one pixel on each side."""

import numpy as np
import pytest

mmcv = pytest.importorskip("mmcv")
registry = pytest.importorskip("mmdet.registry")
resizing = pytest.importorskip("visionattn.engine.compat.resizing")


@pytest.mark.parametrize(("size", "expected"), [((3, 5000), (1, 320)), ((5000, 3), (320, 1)), ((40, 160), (80, 320))])
def test_resize_keeps_a_pixel(size, expected):
    resizing.install()
    image = np.full((*size, 3), 7, np.uint8)
    resized = mmcv.imrescale(image, (320, 320))
    assert resized.shape == (*expected, 3)
    assert (resized == 7).all()
    transform = registry.TRANSFORMS.build(dict(type="mmdet.Resize", scale=(320, 320), keep_ratio=True))
    found = transform(dict(img=image, img_shape=size))
    assert found["img_shape"] == expected
    assert found["scale_factor"] == (expected[1] / size[1], expected[0] / size[0])  # width, height


def test_resize_by_a_factor_keeps_a_pixel():
    resizing.install()
    transform = registry.TRANSFORMS.build(dict(type="mmdet.Resize", scale_factor=0.25, keep_ratio=True))
    assert transform(dict(img=np.zeros((1, 100, 3), np.uint8), img_shape=(1, 100)))["img_shape"] == (1, 25)
