"""Base class of the hierarchical channels-last backbones, which implements timm's model interface."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import create_classifier, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

__all__ = ["NormLayer", "StagedBackbone", "check_levels", "drop_path_rates"]

NormLayer = Callable[..., nn.Module]


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Return the stochastic-depth rates of `depth` blocks, increasing linearly from 0 to `highest`."""
    return [highest * block / max(1, depth - 1) for block in range(depth)]


def check_levels(**per_level: Sequence[Any]) -> None:
    """Raise ValueError unless all arguments have the same number of entries, at least one."""
    lengths = {len(values) for values in per_level.values()}
    if len(lengths) != 1 or 0 in lengths:
        given = ", ".join(f"{name}={tuple(values)}" for name, values in per_level.items())
        names = ", ".join(f"`{name}`" for name in per_level)
        raise ValueError(f"{names} must have the same number of entries, one per level, got {given}")


class StagedBackbone(nn.Module):
    """Backbone with a stem, stages on ``[B, H, W, C]`` maps, a final norm and a classifier.

    Subclasses build ``patch_embed`` and the stages, call `_build_head`, and define `forward_features` and
    `convert_official`. `STAGES` is the attribute name of the stage list, which differs between the published models.
    """

    STAGES: str

    def _build_head(
        self,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        norm_layer: NormLayer,
        feature_info: list[dict[str, Any]],
        out_norms: Sequence[int] = (),
        final_norm: NormLayer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the modules and attributes that follow the stages, and initialize all linear layers.

        `final_norm` is the layer of the norm before the classifier if it differs from that of the output norms.
        """
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.output_fmt = "NHWC"
        self.feature_info = feature_info
        self.num_features = feature_info[-1]["num_chs"]
        self.norm = (final_norm or norm_layer)(self.num_features, device=device, dtype=dtype)
        for level in out_norms:
            if not 0 <= level < len(feature_info):
                raise ValueError(f"`out_norms` must be levels in 0..{len(feature_info) - 1}, got {tuple(out_norms)}")
            self.add_module(f"norm{level}", norm_layer(feature_info[level]["num_chs"], device=device, dtype=dtype))
        self.head_drop = nn.Dropout(drop_rate)
        self._set_classifier(num_classes, global_pool, device, dtype)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _set_classifier(self, num_classes: int, global_pool: str, device: Any, dtype: Any) -> None:
        pool, head = create_classifier(
            self.num_features, num_classes, global_pool, input_fmt="NHWC", device=device, dtype=dtype
        )
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * pool.feat_mult()
        self.global_pool, self.head = pool.train(self.training), head.train(self.training)

    def stage_list(self) -> nn.ModuleList:
        """Return the stages in order, one for each entry of `feature_info`."""
        return getattr(self, self.STAGES)

    def _stem(self, x: Tensor) -> Tensor:
        """Apply the stem to images ``[B, C, H, W]``; returns a channels-last map."""
        return self.patch_embed(x)

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Run a stage outside of TorchScript."""
        return stage(x)

    def _next_resolution(self, index: int, x: Tensor) -> Tensor:
        """Downsample the output of stage `index` for the next stage."""
        return self.stage_list()[index].downsample(x)

    def _final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def _drop_stages_after(self, index: int) -> None:
        """Remove all stages after `index`, and the downsampling to the next one."""
        setattr(self, self.STAGES, self.stage_list()[: index + 1])
        if hasattr(self.stage_list()[-1], "downsample"):
            self.stage_list()[-1].downsample = nn.Identity()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay; fnmatch patterns are allowed."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that group parameters by depth, for layer-wise learning rate decay."""
        stages = self.STAGES
        if coarse:
            return {"stem": r"^patch_embed", "blocks": [(rf"^{stages}\.(\d+)", None), (r"^norm", (99999,))]}
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (rf"^{stages}\.(\d+)\.blocks\.(\d+)", None),
                (rf"^{stages}\.(\d+)\.downsample", (99999,)),  # after the blocks of its level
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing."""
        self.grad_checkpointing = enable
        for stage in self.stage_list():
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes: remove it) and, if given, the pooling (``""``: none)."""
        parameter = next(self.parameters())
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self._set_classifier(num_classes, pool, parameter.device, parameter.dtype)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final features and the feature maps of selected stages, before downsampling.

        Args:
            x: images ``[B, in_chans, H, W]``.
            indices: stages to return; an integer n selects the last n, None selects all.
            norm: apply the final norm to the map of the last stage. Stages in `out_norms` use their own norm.
            stop_early: do not run stages after the last selected one.
            output_fmt: layout of the maps, ``"NCHW"`` (contiguous) or ``"NHWC"``.
            intermediates_only: return only the list of maps.

        Returns:
            The final features ``[B, H', W', C]``, as returned by `forward_features`, and the list of maps.

        Raises:
            ValueError: if `output_fmt` is unknown.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"`output_fmt` must be 'NCHW' or 'NHWC', got {str(output_fmt)!r}")
        stages = list(self.stage_list())
        last = len(stages) - 1
        take, highest = feature_take_indices(len(stages), indices)
        maps = []
        x = self._stem(x)
        for i, stage in enumerate(stages[: highest + 1] if stop_early else stages):
            x = self._run_stage(stage, x)
            if i in take:
                final_norm = self._final_norm if norm and i == last else nn.Identity()
                out = getattr(self, f"norm{i}", final_norm)(x)
                maps.append(out.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else out)
            if i == last:
                x = self._final_norm(x)
            elif not (stop_early and i == highest):
                x = self._next_resolution(i, x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the modules that the stages in `indices` do not need; returns the indices as non-negative integers."""
        stages = self.stage_list()
        take, highest = feature_take_indices(len(stages), indices)
        shortened = highest < len(stages) - 1
        for i in range(len(stages)):
            if i not in take and hasattr(self, f"norm{i}"):
                delattr(self, f"norm{i}")
        self._drop_stages_after(highest)
        if shortened:
            self.num_features = self.feature_info[highest]["num_chs"]
        if prune_norm or shortened:
            self.norm = nn.Identity()  # its width is that of the removed last stage
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify features ``[B, H', W', C]``; returns logits ``[B, num_classes]`` or pooled features."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of images ``[B, in_chans, H, W]``."""
        return self.forward_head(self.forward_features(x))
