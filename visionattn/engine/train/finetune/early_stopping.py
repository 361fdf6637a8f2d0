"""Stop training when the validation metric no longer improves."""

from math import isfinite
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop

from visionattn.engine.registry import HOOKS
from visionattn.engine.train.curve import short_names
from visionattn.engine.train.hooks import EARLY_STOPPING, CheckpointHook
from visionattn.errors import ConfigError

__all__ = ["EarlyStoppingHook"]

START: dict[str, Any] = {"metric": None, "best": None, "best_iter": 0, "waited": 0, "seen": 0}
BETTER = {"greater": float.__gt__, "less": float.__lt__}


@HOOKS.register_module()
class EarlyStoppingHook(Hook):
    """Stop after a number of validations without an improvement of a metric.

    In contrast to mmengine's hook of this name, any improvement counts, the metric and its direction are those of
    ``save_best`` by default, and a resumed run continues to count: the count is saved with each checkpoint.
    Validations without metrics, such as those of a detector without detections, count once there has been a metric,
    and not before, so that a detector is not stopped before its first detection.

    Args:
        patience: number of validations without improvement after which training stops.
        monitor: name of the metric, such as ``"coco/bbox_mAP"``. ``"auto"`` is the first one of ``save_best``, or the
            first metric of the validation.
        rule: which is better, ``"greater"`` or ``"less"``; None for that of ``save_best`` or by its name.

    Raises:
        ConfigError: an argument is invalid.
    """

    priority = "LOW"  # before the checkpoint hook, which saves the state

    def __init__(self, patience: int, monitor: str = "auto", rule: str | None = None) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ConfigError(f"`patience` must be at least 1, got {patience!r}")
        if rule not in (None, "greater", "less"):
            raise ConfigError(f"`rule` of EarlyStoppingHook must be 'greater', 'less' or None, got {rule!r}")
        self.patience, self.monitor, self.rule = patience, monitor, rule
        self.reason: str | None = None

    def before_train(self, runner: Any) -> None:
        """Do not continue a run that has stopped early, unless `patience` is larger now."""
        self._decide(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Count a validation during training, and stop if it was the last one."""
        if not isinstance(runner._train_loop, BaseLoop):  # not built: a test
            return
        state = self._state(runner)
        if state["seen"] != runner.iter:  # not repeated after resuming
            runner.message_hub.update_info(EARLY_STOPPING, self._counted(runner, state, metrics or {}))
        self._decide(runner)

    def after_train(self, runner: Any) -> None:
        """Say why the run has stopped, and save its last state."""
        if self.reason is None:
            return
        state, saver = self._state(runner), runner.checkpoint_hook
        runner.note(self.reason)
        if saver is not None and not saver.has_saved(runner):
            saver.save_now(runner, runner.iter)
        runner.progress.write_stop(runner, self.reason, state["best_iter"])

    @staticmethod
    def _state(runner: Any) -> dict[str, Any]:
        return dict(runner.message_hub.runtime_info.get(EARLY_STOPPING) or START)

    def _counted(self, runner: Any, state: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
        state["seen"] = runner.iter
        if not metrics and state["metric"] is None:
            return state
        state["waited"] += 1
        if not metrics:
            return state
        key, rule = self._criterion(runner, metrics)
        if key not in metrics:
            raise ConfigError(f"`monitor` of EarlyStoppingHook must be one of {', '.join(metrics)}, got {key!r}")
        value, best = float(metrics[key]), state["best"]
        state["metric"] = key
        if isfinite(value) and (best is None or BETTER[rule](value, best)):
            state |= {"best": value, "best_iter": runner.iter, "waited": 0}
        return state

    def _criterion(self, runner: Any, metrics: dict[str, float]) -> tuple[str, str]:
        saver = runner.checkpoint_hook
        if self.monitor == "auto" and self.rule is None and saver is not None and saver.save_best:
            return saver.criterion(metrics)
        key = next(iter(metrics)) if self.monitor == "auto" else self.monitor
        return key, self.rule or CheckpointHook(save_best=key).rules[0]

    def _decide(self, runner: Any) -> None:
        state = self._state(runner)
        if state["metric"] is None or state["waited"] < self.patience:
            return
        name = next(iter(short_names({state["metric"]: 0.0})), state["metric"])
        best = "" if state["best"] is None else f"; the best is {state['best']:.3f} of iteration {state['best_iter']}"
        self.reason = (
            f"stopped early at iteration {state['seen']}: no better {name} in {state['waited']} validations{best}"
        )
        runner.train_loop.stop_training = True
