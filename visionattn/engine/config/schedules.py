"""Learning rate schedules that follow the length of a run."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from mmengine.config import Config

__all__ = ["fit_length", "fitted_line", "run_length"]

LENGTHS = {True: "max_epochs", False: "max_iters"}
"""Key of ``train_cfg`` with the length of a run, by ``by_epoch`` of the schedules in the same unit."""


def run_length(config: Config) -> tuple[str, int] | None:
    """Return the key of ``train_cfg`` that sets the length of the run, and its value, or None if it has none."""
    loop = config.get("train_cfg")
    for key in LENGTHS.values():
        if isinstance(loop, Mapping) and isinstance(loop.get(key), int):
            return key, loop[key]
    return None


def fit_length(config: Config, before: Config) -> None:
    """Fit schedules and the validation interval to a changed length of the run, in place.

    What ended with the run ends with it again. A warm-up keeps its length if the run is longer than it, and is scaled
    otherwise; milestones are scaled. Schedules that would begin after the end are removed.

    Args:
        config: the config after the change.
        before: the config before it.
    """
    new, old = run_length(config), run_length(before)
    if new is None or old is None or new[0] != old[0] or new[1] == old[1] or min(new[1], old[1]) < 1:
        return
    by_epoch = new[0] == LENGTHS[True]
    schedules = before.get("param_scheduler")
    if isinstance(schedules, Mapping) and "type" not in schedules:  # by optimizer
        config.param_scheduler = {k: _fitted(v, old[1], new[1], by_epoch) for k, v in schedules.items()}
    elif schedules:
        config.param_scheduler = _fitted(schedules, old[1], new[1], by_epoch)
    interval = config.train_cfg.get("val_interval")
    if isinstance(interval, int) and new[1] < interval <= old[1]:
        config.train_cfg.val_interval = new[1]
    if schedules and config.param_scheduler != schedules:
        shown = ", ".join(_spans(config.param_scheduler, new[1]))
        line = f"schedules fitted to {new[0]}={new[1]} (was {old[1]}): {shown}"
        object.__setattr__(config, "_fitted_line", line)  # an attribute of the object, not a key of the config


def fitted_line(config: Config) -> str | None:
    """Return one line that describes the schedules if `fit_length` has changed them, or None."""
    return vars(config).get("_fitted_line")


def _spans(schedules: Any, length: int) -> Iterator[str]:
    for item in schedules.values() if isinstance(schedules, Mapping) else [schedules]:
        for schedule in item:
            end = schedule.get("end", length)
            yield f"{schedule.get('type')} {schedule.get('begin', 0)} to {end if isinstance(end, int) else length}"


def _fitted(schedules: Any, old: int, new: int, by_epoch: bool) -> list[Any]:
    items = list(schedules) if isinstance(schedules, Sequence) else [schedules]
    same_unit = [s for s in items if isinstance(s, Mapping) and bool(s.get("by_epoch", True)) == by_epoch]
    points = [s[key] for s in same_unit for key in ("begin", "end") if isinstance(s.get(key), int) and s[key] < old]
    scale = 1.0 if max(points, default=0) < new else new / old

    def at(point: int) -> int:
        return new if point == old else point if point > old else round(point * scale)

    result = []
    for item in map(deepcopy, items):
        if not any(item == s for s in same_unit):
            result.append(item)
            continue
        begin, end = item.get("begin", 0), item.get("end")
        for key in ("begin", "end"):
            if isinstance(item.get(key), int):
                item[key] = at(item[key])
        if item.get("begin", 0) >= item.get("end", new):
            continue
        span = (end if isinstance(end, int) and end <= old else old) - begin
        for key in ("T_max", "total_steps"):
            if item.get(key) in (span, old):
                item[key] = at(begin + span) - item.get("begin", 0) if item[key] == span else new
        if "milestones" in item:
            item["milestones"] = [max(1, round(m * new / old)) for m in item["milestones"]]
        result.append(item)
    return result
