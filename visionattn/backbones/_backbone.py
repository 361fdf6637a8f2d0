"""timm's model interface over stages of channels-last maps: what the backbones here share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import create_classifier, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

__all__ = ["NormLayer", "StagedBackbone", "check_levels", "drop_path_rates"]

NormLayer = Callable[..., nn.Module]


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Stochastic-depth rates of `depth` blocks: linear from exactly 0 to `highest`."""
    return [highest * block / max(1, depth - 1) for block in range(depth)]


def check_levels(**per_level: Sequence[Any]) -> None:
    """Raise ValueError unless all arguments have the same number of entries, at least one."""
    lengths = {len(values) for values in per_level.values()}
    if len(lengths) != 1 or 0 in lengths:
        given = ", ".join(f"{name}={tuple(values)}" for name, values in per_level.items())
        raise ValueError(f"these need the same number of entries, one per level: {given}")


class StagedBackbone(nn.Module):
    """timm's model interface over a stem, a list of stages on ``[B, H, W, C]`` maps, a norm and a classifier.

    A subclass builds ``patch_embed`` and its stages, calls `_build_head`, and defines `forward_features` and
    `convert_official`. Its `STAGES` is the name of the list of stages, which differs between the published models.
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
        """The attributes and modules after the stages, and the initial values of all linear layers.

        `final_norm` makes the one before the classifier where it is another than those of the outputs.
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
                raise ValueError(f"out_norms must be levels from 0 to {len(feature_info) - 1}, got {level}")
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
        """The stages in order, one for each entry of `feature_info`."""
        return getattr(self, self.STAGES)

    def _stem(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to the first channels-last map."""
        return self.patch_embed(x)

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Run a stage where the forward pass is not scripted."""
        return stage(x)

    def _next_resolution(self, index: int, x: Tensor) -> Tensor:
        """The step from the stage of this index to the next."""
        return self.stage_list()[index].downsample(x)

    def _final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def _drop_stages_after(self, index: int) -> None:
        """Remove the stages after this one, and the step to the next."""
        setattr(self, self.STAGES, self.stage_list()[: index + 1])
        if hasattr(self.stage_list()[-1], "downsample"):
            self.stage_list()[-1].downsample = nn.Identity()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
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
        self.grad_checkpointing = enable
        for stage in self.stage_list():
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` (0: none), and another pooling if given (``""``: none)."""
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
        """The maps of chosen stages, before downsampling, and the final features.

        Args:
            x: ``[B, in_chans, H, W]``.
            indices: stages to return; an integer for the last so many, None for all.
            norm: apply the final norm to the map of the last stage. Stages in `out_norms` get their own.
            stop_early: stop after the last stage asked for.
            output_fmt: layout of the maps, ``"NCHW"`` (contiguous) or ``"NHWC"``.
            intermediates_only: return only the list of maps.

        Returns:
            The final features ``[B, H', W', C]``, as from `forward_features`, and the list of maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {str(output_fmt)!r}")
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
        """Drop what the stages in `indices` do not need; returns the indices counted from the first stage."""
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
            self.norm = nn.Identity()  # it has the channels of the last stage
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``[B, H', W', C]`` features to logits ``[B, num_classes]``, or to what enters the classifier."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))
