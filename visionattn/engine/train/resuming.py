"""Resume the optimizer and the schedules of a run, following the config where it has changed."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict, ZeroRedundancyOptimizer

from visionattn.engine.train.loops import EpochLoop

__all__ = ["Restored", "restore"]

# Entries of a scheduler's state that change while it runs, or that are the same for every scheduler.
_RUNNING = {"last_step", "_global_step", "_last_value", "verbose", "best", "num_bad_epochs", "cooldown_counter"}
_RATES = ("lr", "initial_lr")


class Restored:
    """What differs between the config and the run that is resumed.

    Attributes:
        changes: one text per changed value, such as ``"lr 0.001 -> 0.0005"``.
    """

    def __init__(self) -> None:
        self.changes: list[str] = []

    def add(self, name: str, old: Any, new: Any) -> None:
        """Note a changed value; parameter groups often share one, which is noted once."""
        line = f"{name} {_short(old)} -> {_short(new)}"
        if line not in self.changes:
            self.changes.append(line)


def restore(runner: Any, optimizer: Any, schedulers: Any) -> Restored:
    """Load the state of the optimizer and the schedulers into a runner.

    If neither learning rates nor schedules of the config have changed, the saved state is loaded, and the run continues
    exactly. Otherwise the rates become those that the schedules of the config have after the completed iterations.
    Other changed options of the optimizer, such as ``weight_decay``, are taken from the config.

    Args:
        runner: the runner, with the optimizer of the config and the counters of the checkpoint.
        optimizer: saved state of the optimizer wrapper.
        schedulers: saved states of the schedulers, by optimizer if there are several, or None.

    Returns:
        The changes.

    Raises:
        ValueError, KeyError: the saved state does not match the optimizer.
    """
    wrappers = _wrappers(runner.optim_wrapper)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    planned = {name: [_options(group) for group in w.param_groups] for name, w in wrappers.items()}
    runner.optim_wrapper.load_state_dict(optimizer)
    for wrapper in wrappers.values():
        if isinstance(wrapper.optimizer, ZeroRedundancyOptimizer):
            wrapper.optimizer.state.clear()  # copies of the state of its local optimizer
    saved = {name: [_options(group) for group in w.param_groups] for name, w in wrappers.items()}
    found, follows = Restored(), False
    for name in wrappers:
        for plan, old in zip(planned[name], saved[name], strict=True):
            _note_options(found, plan, old)
            follows |= _base_rate(plan) != _base_rate(old)
    built, states = _by_name(runner.param_schedulers), _by_name(schedulers)
    for name in built.keys() | states.keys():
        follows |= _note_schedules(found, built.get(name, ()), states.get(name, ()))
    for name, wrapper in wrappers.items():
        for group, plan, old in zip(wrapper.param_groups, planned[name], saved[name], strict=True):
            group.update({**plan, **({} if follows else {key: old[key] for key in _RATES if key in old})})
    if follows:
        _advance(runner, built)
    else:
        for name, group in built.items():
            for scheduler, state in zip(group, states[name], strict=True):
                scheduler.load_state_dict(state)
    return found


def _base_rate(group: Mapping[str, Any]) -> float:
    """Learning rate of a parameter group before its schedules."""
    return group.get("initial_lr", group["lr"])


def _wrappers(wrapper: Any) -> dict[str, OptimWrapper]:
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {"": wrapper}


def _by_name(schedulers: Any) -> dict[str, Sequence[Any]]:
    if schedulers is None:
        return {}
    return dict(schedulers) if isinstance(schedulers, Mapping) else {"": schedulers}


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _note_options(found: Restored, plan: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    for key, value in plan.items():
        if key not in _RATES and old.get(key, value) != value:
            found.add(key, old[key], value)
    if _base_rate(plan) != _base_rate(old):
        found.add("lr", _base_rate(old), _base_rate(plan))


def _note_schedules(found: Restored, built: Sequence[Any], states: Sequence[Mapping[str, Any]]) -> bool:
    """Note the differences between schedulers and saved states, and return True if there are any."""
    kinds = [len(states), len(built)]
    if kinds[0] != kinds[1]:
        found.add("number of schedules", *kinds)
        return True
    changed = False
    for number, (scheduler, state) in enumerate(zip(built, states, strict=True)):
        for key, value in _settings(scheduler.state_dict()):
            if key in state and state[key] != value:
                changed = True
                if key != "base_values":  # follows from the learning rate, which is noted
                    found.add(f"param_scheduler.{number}.{key}", state[key], value)
        if set(dict(_settings(scheduler.state_dict()))) != set(dict(_settings(state))):
            found.add(f"type of param_scheduler.{number}", "another one", type(scheduler).__name__)
            changed = True
    return changed


def _settings(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a scheduler's state that come from the config."""
    for key, value in state.items():
        if key not in _RUNNING and not callable(value):
            yield key, value


def _advance(runner: Any, built: Mapping[str, Sequence[Any]]) -> None:
    """Step new schedulers as often as the training loop would have."""
    schedulers = [s for group in built.values() for s in group if hasattr(s, "begin")]
    loop, iterations = runner.train_loop, runner.train_loop._iter
    # a loop over iterations ends its only epoch with the run
    epochs, per_epoch = (loop._epoch, len(loop.dataloader)) if isinstance(loop, EpochLoop) else (0, 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `scheduler.step")  # without steps of the optimizer
        for number in range(1, iterations + 1):
            for scheduler in schedulers:
                if not scheduler.by_epoch or (number <= epochs * per_epoch and number % per_epoch == 0):
                    scheduler.step()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
