"""The published variants of the backbones here, and the dilation schedules of those with neighborhood attention.

Sizes and schedules: arXiv 2204.07143 (NAT), arXiv 2209.15001 (DiNAT), arXiv 2303.08810 (BiFormer), and the authors'
released models.
"""

from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["BIFORMER", "DILATION_PRESETS", "DINAT", "DINAT_S", "ISOTROPIC", "Dilation", "resolve_dilations"]

Dilation = int | Literal["auto"]

_LARGE = {"embed_dim": 192, "depths": (3, 4, 18, 5), "num_heads": (6, 12, 24, 48), "mlp_ratio": 2.0}
_BASE = {"embed_dim": 128, "depths": (3, 4, 18, 5), "num_heads": (4, 8, 16, 32), "mlp_ratio": 2.0}
_SMALL = {"embed_dim": 96, "depths": (3, 4, 18, 5), "num_heads": (3, 6, 12, 24), "mlp_ratio": 2.0}
_TINY = {"embed_dim": 64, "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0}
_MINI = {"embed_dim": 64, "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0}

DINAT: dict[str, dict[str, Any]] = {
    "nat_mini": dict(**_MINI, drop_path_rate=0.2),
    "nat_tiny": dict(**_TINY, drop_path_rate=0.2),
    "nat_small": dict(**_SMALL, drop_path_rate=0.3, layer_scale=1e-5),
    "nat_base": dict(**_BASE, drop_path_rate=0.5, layer_scale=1e-5),
    # Ours: at most 3 M parameters, for small data sets and machines without a GPU.
    "dinat_pico": {
        "embed_dim": 32,
        "depths": (2, 2, 6, 2),
        "num_heads": (1, 2, 4, 8),
        "mlp_ratio": 2.5,
        "drop_path_rate": 0.0,
        "dilations": "classification",
    },
    "dinat_mini": dict(**_MINI, drop_path_rate=0.2, dilations="classification"),
    "dinat_tiny": dict(**_TINY, drop_path_rate=0.2, dilations="classification"),
    # The released small and large models have no layer scale, unlike nat_small and dinat_base.
    "dinat_small": dict(**_SMALL, drop_path_rate=0.3, dilations="classification"),
    "dinat_base": dict(**_BASE, drop_path_rate=0.5, layer_scale=1e-5, dilations="classification"),
    "dinat_large": dict(**_LARGE, drop_path_rate=0.35, dilations="classification"),
    "dinat_large_11x11": dict(**_LARGE, kernel_size=11, drop_path_rate=0.35, dilations="classification"),
}

DINAT_S: dict[str, dict[str, Any]] = {
    "dinat_s_tiny": {
        "embed_dim": 96,
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 24),
        "drop_path_rate": 0.2,
        "dilations": "classification",
    },
    "dinat_s_small": {
        "embed_dim": 96,
        "depths": (2, 2, 18, 2),
        "num_heads": (3, 6, 12, 24),
        "drop_path_rate": 0.3,
        "dilations": "classification",
    },
    "dinat_s_base": {
        "embed_dim": 128,
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
        "drop_path_rate": 0.5,
        "dilations": "classification",
    },
    "dinat_s_large": {
        "embed_dim": 192,
        "depths": (2, 2, 18, 2),
        "num_heads": (6, 12, 24, 48),
        "drop_path_rate": 0.35,
        "dilations": "classification",
    },
}

_ISO_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 12, "drop_path_rate": 0.1}
_ISO_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 24, "drop_path_rate": 0.4}

ISOTROPIC: dict[str, dict[str, Any]] = {
    "nat_isotropic_small": dict(**_ISO_SMALL),
    "nat_isotropic_base": dict(**_ISO_BASE),
    "dinat_isotropic_small": dict(**_ISO_SMALL, dilations="classification"),
    "dinat_isotropic_base": dict(**_ISO_BASE, dilations="classification"),
    "vitrpb_small": dict(**_ISO_SMALL),
    "vitrpb_base": dict(**_ISO_BASE),
}

BIFORMER: dict[str, dict[str, Any]] = {
    "biformer_tiny": {"embed_dim": 64, "depths": (2, 2, 8, 2), "mlp_ratio": 3.0},
    "biformer_small": {"embed_dim": 64, "depths": (4, 4, 18, 4), "mlp_ratio": 3.0},
    "biformer_base": {"embed_dim": 96, "depths": (4, 4, 18, 4), "mlp_ratio": 3.0},
    "biformer_stl": {"embed_dim": 96, "depths": (2, 2, 6, 2), "mlp_ratio": 4.0, "pos_conv": False},
}

# One pattern per level. A deeper level repeats its pattern; a shallower one takes the end of it, where the
# widest steps are: so the same table gives the published schedules of DiNAT and of the shallower DiNAT_s.
DILATION_PRESETS: dict[str, tuple[tuple[int, ...], ...]] = {
    "classification": ((1, 8), (1, 4), (1, 2), (1,)),  # 224 x 224
    "classification_384": ((1, 13), (1, 6), (1, 3), (1,)),
    "detection": ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3)),  # COCO, short side 800
    "segmentation": ((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)),  # ADE20K, 512 x 512
    "segmentation_640": (
        (1, 20),
        (1, 5, 1, 10),
        (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
        (1, 2),
    ),
    "mask2former": ((1, 14), (1, 4, 1, 7), (1, 2, 1, 3) * 4 + (1, 3), (1,)),  # kernel 11
}


def _fit(pattern: tuple[int, ...], depth: int) -> list[Dilation]:
    """`pattern` for `depth` blocks: repeated, or its end, keeping local and dilated blocks alternating."""
    start = max(0, len(pattern) - depth) // 2 * 2
    return [pattern[(start + block) % len(pattern)] for block in range(depth)]


def resolve_dilations(dilations: str | Sequence[Sequence[int]] | None, depths: Sequence[int]) -> list[list[Dilation]]:
    """The dilation of every block, as one list per level.

    Args:
        dilations: None for 1 everywhere (NAT); a name in `DILATION_PRESETS`; ``"auto"`` for 1 in even blocks
            and, in odd blocks, the largest dilation that fits the map of the input at hand, per axis
            (``length // kernel_size``: at 224 and 384 pixels these are the classification schedules); or the
            values themselves, one sequence per level and one integer per block.
        depths: blocks per level.

    Raises:
        ValueError: an unknown name, a wrong number of levels or blocks, or a value that is no integer >= 1.
    """
    if dilations is None:
        return [[1] * depth for depth in depths]
    if isinstance(dilations, str):
        if dilations == "auto":
            return [["auto" if block % 2 else 1 for block in range(depth)] for depth in depths]
        if dilations not in DILATION_PRESETS:
            names = ", ".join(repr(name) for name in ("auto", *DILATION_PRESETS))
            raise ValueError(f"dilations={dilations!r} is not a known schedule; there are {names}")
        preset = DILATION_PRESETS[dilations]
        if len(preset) != len(depths):
            raise ValueError(
                f"dilations={dilations!r} is a schedule for {len(preset)} levels, but the model has "
                f"{len(depths)}; give one list of dilations per level"
            )
        return [_fit(pattern, depth) for pattern, depth in zip(preset, depths, strict=True)]
    if isinstance(dilations, int) or len(dilations) != len(depths):
        raise ValueError(f"dilations must have one sequence for each of {len(depths)} levels, got {dilations!r}")
    for level, (given, depth) in enumerate(zip(dilations, depths, strict=True)):
        if isinstance(given, int) or len(given) != depth:
            raise ValueError(f"dilations[{level}] must have {depth} values, one per block: {given!r}")
        if not all(isinstance(d, int) and d >= 1 for d in given):
            raise ValueError(f"dilations[{level}] must be integers >= 1, got {given!r}")
    return [list(given) for given in dilations]
