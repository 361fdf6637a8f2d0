"""Cases of the forgery, localization and LiDAR heads."""

import math

import timm
import torch
from torch import nn

import visionattn  # noqa: F401  (registers the models)
from parity.recipe import Recipe, Result
from visionattn.heads.forgery.branches import ImageBranch, NFABlock, NoiseBranch, NoiseExtractor
from visionattn.heads.forgery.heads import FusionHead
from visionattn.heads.forgery.net import ForgeryNet
from visionattn.heads.forgery.nfa_vit import NFAViT
from visionattn.heads.lidar.center_head import CenterHead
from visionattn.heads.lidar.data.voxelize import voxelize
from visionattn.heads.lidar.decoding import Decoding
from visionattn.heads.lidar.neck import CascadeDED
from visionattn.heads.lidar.rotated_boxes import iou_3d
from visionattn.heads.lidar.targets import BEVGrid
from visionattn.heads.lidar.voxel_encoder import VoxelEncoder
from visionattn.heads.localization.cam import CAMHead, grad_cam
from visionattn.heads.localization.sat import create_sat

BRANCH = {"dims": (8, 16, 24, 32), "depths": (2, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
NFA = {
    "noise_dims": (8, 16, 24, 32), "noise_depths": (2, 1, 1, 1), "image_dims": (8, 16, 24, 32),
    "image_depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4), "embed_dim": 16, "drop_path_rate": 0.0,
}  # fmt: skip
GRID = BEVGrid.of([-8.0, -4.0, -2.0, 8.0, 4.0, 2.0], [0.2, 0.2, 0.5], 2)


def nfa_noise_block(recipe: Recipe) -> Result:
    block = recipe.module(NFABlock(32, 2, 4, "noise", block="published"))
    with torch.no_grad():
        out, mask = block.forward_with_mask(recipe.input("x", 2, 256, 32), (16, 16))
    return {"output": out, "mask": mask.to(recipe.dtype)}


def nfa_image_block(recipe: Recipe) -> Result:
    block, x = recipe.module(NFABlock(32, 2, 4, "fixed")), recipe.input("x", 2, 256, 32, grad=True)
    out = block(x, (16, 16))
    return {"output": out, **recipe.gradients([out], [x], block)}


def nfa_branches(recipe: Recipe) -> Result:
    """Noise extractor, noise branch with its masks, and image branch under these masks."""
    extractor, noise = recipe.module(NoiseExtractor()), recipe.module(NoiseBranch(**BRANCH))
    image, x = recipe.module(ImageBranch(**BRANCH)), recipe.input("image", 1, 3, 64, 96)
    with torch.no_grad():
        residual = extractor(x)
        features, _ = noise(recipe.input("residual", 1, 1, 64, 96))
        shapes = [(1, h, n, m) for h, n, m in ((1, 384, 6), (2, 96, 6), (3, 24, 6), (4, 6, 6))]
        masks = [recipe.mask(f"mask{i}", 0.4, *shape) for i, shape in enumerate(shapes)]
        maps = image(x, masks)
    numbered = {f"noise {i}": y for i, y in enumerate(features)} | {f"image {i}": y for i, y in enumerate(maps)}
    return {"residual": residual, **numbered}


def nfa_fusion_head(recipe: Recipe) -> Result:
    head = recipe.module(FusionHead((64, 128, 320, 512), official=True))
    maps = [recipe.input(f"map{i}", 1, c, 12 >> i or 1, 16 >> i) for i, c in enumerate((64, 128, 320, 512))]
    with torch.no_grad():
        return {"logits": head(maps)}


def _nfa_vit(**options):
    def run(recipe: Recipe) -> Result:
        model, image = recipe.module(NFAViT(**NFA, **options)), recipe.input("image", 1, 3, 64, 96)
        with torch.no_grad():
            output = model(image)
        return {"mask": output.mask_logits, "label": output.label_logits}

    return run


def _forgery_net(noise: str):
    def run(recipe: Recipe) -> Result:
        backbone = timm.create_model("dinat_pico", features_only=True, depths=(1, 1, 1, 1), dilations="auto")
        info = backbone.feature_info
        options = {"noise": noise, "noise_branch": BRANCH, "embed_dim": 16, "residual_maps": 4}
        model = recipe.module(ForgeryNet(backbone, info.channels(), info.reduction(), **options))
        with torch.no_grad():
            output = model(recipe.input("image", 1, 3, 64, 96))
        return {"mask": output.mask_logits, "label": output.label_logits}

    return run


def sat(recipe: Recipe) -> Result:
    """Logits, map, masks, the terms of the loss, and gradient norms."""
    sizes = {"embed_dim": 48, "num_heads": 3, "depth": 6, "img_size": 64}
    model = recipe.module(create_sat("deit_tiny_patch16_224", 10, **sizes))
    output = model(recipe.input("image", 2, 3, 64, 80))
    losses = model.loss(output, torch.tensor([3, 7]))
    terms = torch.stack([losses[name] for name in sorted(losses)])
    result = {"logits": output.logits, "map": output.maps, "masks": torch.stack(output.masks), "losses": terms}
    return result | recipe.gradients([terms], [], model)


def cam(recipe: Recipe) -> Result:
    head = recipe.module(CAMHead(24, 5))
    early = recipe.input("features", 2, 12, 8, 10, grad=True)
    later = recipe.module(nn.Conv2d(12, 24, 2, 2))
    output, labels = head([early, later(early)]), torch.tensor([1, 4])
    maps = grad_cam(early, output.logits, labels)
    return {"logits": output.logits, "maps": head.maps(output, labels), "grad-cam": maps}


def _boxes(recipe: Recipe, name: str, count: int) -> torch.Tensor:
    """``[N, 7]``: boxes within the grid."""
    low = torch.tensor([-7.0, -3.5, -1.0, 0.8, 0.6, 1.0, -math.pi], dtype=recipe.dtype)
    high = torch.tensor([7.0, 3.5, 1.0, 4.5, 2.0, 2.0, math.pi], dtype=recipe.dtype)
    return low + (high - low) * recipe.positive(name, count, 7)


def center_head(recipe: Recipe) -> Result:
    """Maps, losses, gradients, and the decoded boxes after suppression."""
    decoding = Decoding(max_candidates=30, rectify=(0.6, 0.3, 0.5), nms_iou=(0.2, 0.2, 0.2))
    groups = [[0], [1, 2]]
    head = recipe.module(CenterHead(12, 3, GRID, 16, velocity=True, class_groups=groups, decoding=decoding))
    x = recipe.input("map", 2, 12, 20, 40, grad=True)
    outputs = head(x)
    boxes = [_boxes(recipe, f"boxes{i}", count) for i, count in enumerate((6, 3))]
    labels = [torch.arange(count) % 3 for count in (6, 3)]
    velocity = [recipe.input(f"velocity{i}", count, 2) for i, count in enumerate((6, 3))]
    losses = head.loss(outputs, boxes, labels, velocity)
    terms = torch.stack([losses[name] for name in sorted(losses)])
    result = {f"{name} {i}": out[name].detach() for i, out in enumerate(outputs) for name in sorted(out)}
    found = head.predict(outputs)
    result |= {f"boxes {i}": torch.cat([f.boxes, f.velocity, f.scores[:, None]], 1) for i, f in enumerate(found)}
    result |= {f"labels {i}": f.labels.to(recipe.dtype) for i, f in enumerate(found)}
    return {**result, "losses": terms, **recipe.gradients([terms], [x], head)}


def rotated_overlap(recipe: Recipe) -> Result:
    first, second = _boxes(recipe, "first", 24), _boxes(recipe, "second", 30)
    return {"overlap": iou_3d(first, second)}


def lidar_neck(recipe: Recipe) -> Result:
    return recipe.run(recipe.module(CascadeDED(12, 16, num_units=2)), recipe.input("map", 2, 12, 13, 18), grad=True)


def voxel_encoder(recipe: Recipe) -> Result:
    extent, size = (-4.0, -2.0, -1.0, 4.0, 2.0, 1.0), (0.5, 0.5, 0.5)
    encoder = recipe.module(VoxelEncoder(4, 16, point_cloud_range=extent, voxel_size=size))
    scale = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=recipe.dtype)
    points = recipe.positive("points", 400, 4) * scale - torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=recipe.dtype)
    voxels = voxelize(points, extent, size)
    with torch.no_grad():
        return {"features": encoder(voxels), "places": voxels.coords.to(recipe.dtype)}


CASES = {
    "nfa_noise_block": nfa_noise_block,
    "nfa_image_block": nfa_image_block,
    "nfa_branches": nfa_branches,
    "nfa_fusion_head": nfa_fusion_head,
    "nfa_vit": _nfa_vit(),
    "nfa_vit_official": _nfa_vit(official=True),
    "forgery_net_statistics": _forgery_net("statistics"),
    "forgery_net_features": _forgery_net("features"),
    "forgery_net_highpass": _forgery_net("highpass"),
    "sat": sat,
    "cam": cam,
    "center_head": center_head,
    "rotated_overlap": rotated_overlap,
    "lidar_neck": lidar_neck,
    "voxel_encoder": voxel_encoder,
}
FLOAT32 = {"forgery_net_statistics", "forgery_net_features"}
