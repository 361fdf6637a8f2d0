"""Cases of whole backbones; those under the names of the authors' checkpoints go through `load_official`."""

import json
from pathlib import Path

import timm
import torch

from parity.recipe import Recipe, Result
from visionattn.backbones import load_official

NAMES = Path(__file__).parent / "names"
SMALL_BIFORMER = {
    "embed_dim": (32, 64, 128, 256), "depths": (1, 1, 2, 1), "topks": (1, 4, 16, -2), "num_regions": 16,
    "qk_dims": (32, 64, 128, 256), "head_dim": 32,
}  # fmt: skip
SMALL_DAVIT = {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 64, 96), "num_heads": (1, 2, 4, 6)}
DENSE = {"features_only": True, "out_indices": (0, 1, 2, 3), "out_norms": (0, 1, 2, 3)}

OFFICIAL = {  # file of names: model, arguments, size of the image, prefix of the names in the checkpoint
    "dinat_mini": ("dinat_mini", {}, (224, 224), ""),
    "dinat_mini_detection": ("dinat_mini", {**DENSE, "dilations": "detection"}, (96, 160), "backbone."),
    "biformer_tiny": ("biformer_tiny", {}, (224, 224), ""),
    "biformer_detection": ("biformer_tiny", {**DENSE, **SMALL_BIFORMER}, (96, 160), "backbone."),
    "biformer_stl_nchw": ("biformer_stl", {}, (96, 128), ""),
    "davit_tiny": ("davit_tiny", {}, (160, 192), ""),
    "davit_detection": ("davit_large_window12_384", {**DENSE, **SMALL_DAVIT, "window_size": 7}, (101, 75), "backbone."),
}  # fmt: skip
OWN = {  # model, arguments, shape of the input, whether gradients are recorded
    "nat_mini": ("nat_mini", {}, (1, 3, 96, 128), False),
    "dinat_s_tiny": ("dinat_s_tiny", {}, (1, 3, 96, 128), False),
    "dinat_isotropic_small": ("dinat_isotropic_small", {}, (1, 3, 224, 224), False),
    "vitrpb": ("vitrpb_small", {"img_size": 96, "embed_dim": 48, "depth": 3, "num_heads": 3}, (2, 3, 96, 96), True),
    "dinat_pico": ("dinat_pico", {}, (2, 3, 64, 96), True),
    "dinat_pico_layer_scale": ("dinat_pico", {"layer_scale": 1e-5, "dilations": "auto"}, (2, 3, 96, 64), True),
    "biformer_small_depths": ("biformer_tiny", SMALL_BIFORMER, (2, 3, 64, 96), True),
    "biformer_stl": ("biformer_stl", {"depths": (1, 1, 2, 1), "embed_dim": 32}, (2, 3, 64, 96), True),
    "davit_window_12": ("davit_large_window12_384", SMALL_DAVIT, (2, 3, 64, 96), True),
    "timesformer": (
        "timesformer_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_frames": 4},
        (2, 3, 4, 32, 40),
        True,
    ),
    "scatterformer_image": ("scatterformer_pico", {"in_chans": 3}, (1, 3, 24, 32), False),
}


def names_of(case: str) -> dict[str, list[int]]:
    """Names and shapes of the authors' checkpoint."""
    return json.loads((NAMES / f"{case}.json").read_text())


def _official(case: str, model: str, arguments: dict, size: tuple[int, int], prefix: str):
    def run(recipe: Recipe) -> Result:
        net = timm.create_model(model, **arguments)
        weights = {f"{prefix}{name}": value for name, value in recipe.state(names_of(case)).items()}
        report = load_official(net.to(recipe.dtype), {"state_dict": weights})
        assert len(report.loaded) == len(weights)
        assert not {*report.dropped, *report.interpolated}
        assert all(name.endswith("num_batches_tracked") for name in report.missing)
        return recipe.run(net.eval(), recipe.input("image", 1, 3, *size))

    return run


def _own(model: str, arguments: dict, shape: tuple[int, ...], grad: bool):
    def run(recipe: Recipe) -> Result:
        net = recipe.module(timm.create_model(model, **arguments))
        return recipe.run(net, recipe.input("image", *shape), grad=grad)

    return run


def pose_vit(recipe: Recipe) -> Result:
    """Given masks, predicted masks and feature maps."""
    sizes = {"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 3}
    net = recipe.module(timm.create_model("pose_vit_small_patch16_224", **sizes, paab=(2, 4), pose_joints=5))
    x, mask = recipe.input("image", 2, 3, 64, 80), recipe.mask("mask", 0.4, 2, 4, 5).to(recipe.dtype)
    with torch.no_grad():
        logits, joints = net.forward_joints(x)
        maps = net.forward_intermediates(x, [1, 3], intermediates_only=True, pose=mask)
        result = {
            "masked": net(x, mask),
            "unmasked": net(x, torch.zeros_like(mask)),
            "map 1": maps[0],
            "map 3": maps[1],
        }
    return {**result, "logits": logits, "joints": joints}


def _pose_timesformer(**options):
    def run(recipe: Recipe) -> Result:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_frames": 4}
        net = recipe.module(timm.create_model("timesformer_tiny_patch16_224", **sizes, num_classes=7, **options))
        x = recipe.input("video", 2, 3, 4, 32, 40)
        if "paat" in options:
            logits, joints = net.forward_joints(x)
            outputs = {"logits": logits, "joints": joints[-1]}
        else:
            mask = recipe.mask("mask", 0.4, 2, 4, 4, 5).to(recipe.dtype)
            outputs = {"logits": net(x, mask)}
        return outputs | recipe.gradients(list(outputs.values()), [], net)

    return run


def scatterformer(recipe: Recipe) -> Result:
    """Voxels of two samples to pillars and to a bird's-eye-view map."""
    net = _scatterformer(recipe)
    coords = recipe.voxels("voxels", 0.06, 2, (32, 22, 20))
    features = recipe.input("features", len(coords), 8)
    with torch.no_grad():
        pillars = net.forward_pillars(features, coords, 2)
        b, z, y, x = pillars.coords.unbind(1)
        rows = pillars.features[((b * 64 + z) * 64 + y).mul(64).add(x).argsort()]
        return {"map": net.forward_sparse(features, coords, 2), "pillars": rows}


def scatterformer_gradients(recipe: Recipe) -> Result:
    """With wide heads only: gradients of a query of which ReLU leaves little are ill-conditioned."""
    net = _scatterformer(recipe, num_heads=1, depths=(1, 1))
    coords = recipe.voxels("voxels", 0.06, 2, (32, 22, 20))
    features = recipe.input("features", len(coords), 8, grad=True)
    return recipe.gradients([net.forward_sparse(features, coords, 2)], [features], net)


def _scatterformer(recipe: Recipe, **options) -> torch.nn.Module:
    sizes = {"in_chans": 8, "embed_dim": 32, "window_size": 6, "grid_size": (20, 22, 32), "num_classes": 0}
    return recipe.module(timm.create_model("scatterformer_waymo", **sizes, **options))


CASES = {
    **{f"official_{name}": _official(name, *case) for name, case in OFFICIAL.items()},
    **{name: _own(*case) for name, case in OWN.items()},
    "pose_vit": pose_vit,
    "paab_spatial": _pose_timesformer(paab=(3,)),
    "paab_joint_legacy": _pose_timesformer(paab=(3,), paab_attention="joint", mask_layout="legacy"),
    "paab_spatiotemporal": _pose_timesformer(paab=(2, 3), paab_attention="spatiotemporal", num_pose_blocks=2),
    "paat": _pose_timesformer(paat=(1, 2), num_joints=5),
    "scatterformer": scatterformer,
    "scatterformer_gradients": scatterformer_gradients,
}
