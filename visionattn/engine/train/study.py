"""Search for hyperparameters with Optuna: each trial is one training run with other values of some config keys."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from visionattn.engine.config.load import load_config
from visionattn.engine.registry import HOOKS
from visionattn.engine.train.train import TrainResult, train
from visionattn.errors import ConfigError, TrainingError, require

__all__ = ["PruningHook", "Range", "parse_range", "run_study"]

_trials: dict[int, Any] = {}
"""The running Optuna trials by number, for `PruningHook`, whose arguments must be config values."""


@dataclass(frozen=True)
class Range:
    """Values of a config key: numbers between two limits, or a list.

    Attributes:
        key: the key, such as ``optim_wrapper.optimizer.lr``.
        low, high: limits, for numbers.
        log: numbers are chosen on a logarithmic scale.
        choices: the values of a list, otherwise empty.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Any) -> Any:
        """Return the value for a trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def parse_range(text: str) -> Range:
    """Return the range for a text: ``KEY=LOW:HIGH``, ``KEY=log:LOW:HIGH`` or ``KEY=[A,B,...]``.

    Integers stay integers if both limits are integers.

    Raises:
        ConfigError: the text has another form.
    """
    key, _, values = text.partition("=")
    number = r"[-+]?[\d.]+(?:e[-+]?\d+)?"
    if found := re.fullmatch(rf"(log:)?({number}):({number})", values, re.IGNORECASE):
        try:
            low, high = ast.literal_eval(found[2]), ast.literal_eval(found[3])
        except (ValueError, SyntaxError):
            low = high = 0
        if low < high and (not found[1] or low > 0):
            return Range(key, low, high, bool(found[1]))
    elif values.startswith("["):
        try:
            choices = tuple(ast.literal_eval(values))
        except (ValueError, SyntaxError):
            choices = tuple(part.strip() for part in values.strip("[]").split(",") if part.strip())
        if choices and all(isinstance(choice, (str, int, float, bool)) for choice in choices):
            return Range(key, choices=choices)
    raise ConfigError(
        f"`search` must be KEY=LOW:HIGH with LOW below HIGH, KEY=log:LOW:HIGH or KEY=[A,B,...], got {text!r}"
    )


class Pruned(Exception):  # noqa: N818
    """A trial has been stopped early, as its metric is worse than that of others at the same iteration."""


@HOOKS.register_module()
class PruningHook(Hook):
    """Reports each validation to Optuna, and stops a trial that is worse than half of the others at that point.

    Args:
        trial: number of the trial.
    """

    priority = "VERY_LOW"

    def __init__(self, trial: int) -> None:
        self.trial = trial

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Report the first metric."""
        trial = _trials[self.trial]
        if metrics:
            trial.report(float(next(iter(metrics.values()))), runner.iter)
            if trial.should_prune():
                raise Pruned


def run_study(
    config: str | Path,
    ranges: Sequence[Range],
    out: str | Path,
    trials: int,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_trial: Callable[[Any, TrainResult | None, str], None] = lambda trial, result, state: None,
) -> Any:
    """Train a model repeatedly and maximize the first validation metric, with Optuna's default sampler (TPE).

    The study is kept in ``study.db`` in the folder: another call continues it, and several processes may work on it at
    the same time. Trial N is the training run in ``trial_N``.

    Args:
        config: name or file of the config.
        ranges: the values to choose from.
        out: folder of the study.
        trials: number of trials to run in this call.
        options: ``cfg_options`` and other arguments of `visionattn.engine.train.train.train`, the same for all trials.
        seed: seed of the sampler.
        on_trial: called after each trial with the trial, its result or None, and ``"complete"``, ``"pruned"`` or the
            reason of the failure.

    Returns:
        The Optuna study.

    Raises:
        ConfigError: the config is invalid, or has no validation.
        MissingDependencyError: optuna is not installed.
    """
    optuna = require("optuna", "tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options, folder = dict(options or {}), Path(out)
    fixed = list(options.pop("cfg_options", None) or [])
    probe = load_config(config, [*fixed, *(f"{r.key}={r.choices[0] if r.choices else r.low}" for r in ranges)])
    if not (probe.get("val_dataloader") and probe.get("val_evaluator")):
        raise ConfigError(f"{config}: a study requires a validation; set val_dataloader and val_evaluator")
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / 'study.db').resolve()}",
        study_name="visionattn",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed + _finished(folder)),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )

    def objective(trial: Any) -> float:
        chosen = [f"{r.key}={r.suggest(trial)!r}" for r in ranges]
        run = load_config(config, [*fixed, *chosen])
        hook = {"type": "visionattn.PruningHook", "trial": trial.number}
        run.custom_hooks = [*(run.get("custom_hooks") or []), hook]
        _trials[trial.number] = trial
        try:
            result = train(run, work_dir=folder / f"trial_{trial.number}", **options)
        except Pruned:
            on_trial(trial, None, "pruned")
            raise optuna.TrialPruned from None
        except TrainingError as error:  # such as a loss of NaN with a high learning rate
            on_trial(trial, None, str(error))
            raise optuna.TrialPruned from error
        finally:
            del _trials[trial.number]
        if not result.best_metrics:
            raise ConfigError(
                f"{config}: a study requires a validation; there was none in {result.iterations} iterations"
            )
        value = next(iter(result.best_metrics.values()))
        trial.set_user_attr("metrics", result.best_metrics)
        on_trial(trial, result, "complete")
        return value

    study.optimize(objective, n_trials=trials)
    return study


def _finished(folder: Path) -> int:
    """Return the number of earlier trials, so that a continued study does not repeat their random numbers."""
    return len(list(folder.glob("trial_*")))
