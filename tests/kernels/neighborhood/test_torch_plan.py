"""The index tables of the PyTorch backend are built once per geometry."""

import timm
import torch

import visionattn  # noqa: F401  registers the models
from visionattn.kernels.neighborhood.torch import dense, passes, plan


def test_a_detection_schedule_in_two_orientations_stays_cached(monkeypatch):
    """Training on alternating image sizes must not rebuild tables after the first step of each size."""
    for cached in (plan.make_plan, dense._choose, passes._passes, passes._chunks):
        cached.cache_clear()  # earlier tests of the process may have used the same shapes
    built = []
    for module, name in ((plan, "Plan"), (plan, "RowGroups"), (passes, "Pass"), (passes, "Chunk"), (dense, "Whole")):
        original = getattr(module, name)

        def build(*args, original=original, name=name, **kwargs):
            built.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, build)
    model = timm.create_model(
        "dinat_mini", features_only=True, dilations="detection", embed_dim=16, num_heads=(1, 1, 1, 1), backend="torch"
    )
    images = [torch.rand(1, 3, *size) for size in ((224, 256), (256, 224))]
    counts = []
    for _ in range(2):
        for image in images:
            sum(x.mean() for x in model(image)).backward()
        counts.append({name: built.count(name) for name in ("Plan", "RowGroups", "Pass", "Chunk")})
        built.clear()
    assert counts[0]["Plan"] > 11
    assert counts[0]["RowGroups"] > 8
    assert counts[1] == {"Plan": 0, "RowGroups": 0, "Pass": 0, "Chunk": 0}
