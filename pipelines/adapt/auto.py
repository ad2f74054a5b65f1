"""Which method: the cheap ones first, under a budget of time, bad ones stopped early by successive halving.

Source: asynchronous successive halving, Li et al. 2020, arXiv 1810.05934, as the library optuna does it (extra ``adapt``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from monograph.errors import ConfigError, MissingPackageError, MonographError
from monograph.models.contract import Kind
from monograph.pipelines.adapt.features import has_batch_norm
from monograph.pipelines.adapt.methods import METHODS, Adaptation, Outcome
from monograph.pipelines.adapt.standing import Trial
from monograph.pipelines.training import Epoch

AUTO = "auto"
_BUDGET_S = 600.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_KEPT_OF = 2
"""Of candidates that have come as far, one in so many goes on."""
_RATES = (1e-4, 3e-5)
"""Learning rates that fine-tuning is tried at, in a transformer; convolutions take ten times as much."""


@dataclass(frozen=True)
class Candidate:
    """A method with the settings that it is tried with."""

    method: str
    settings: dict[str, Any]


class _Stopped(Exception):  # noqa: N818 # no error: a way out of a training
    """A candidate is given up."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


def parse_budget(text: str | None) -> float:
    """Return the seconds of ``10m``, ``90s`` or ``1h``; ten minutes where nothing is said.

    Raises:
        ConfigError: it has another form.
    """
    if text is None:
        return _BUDGET_S
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * _UNITS[unit]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"budget {text!r} is not of the form 90s, 10m or 1h") from error
    if not seconds > 0 or math.isinf(seconds):
        raise ConfigError(f"budget {text!r}: give a time above 0")
    return seconds


def candidates(adaptation: Adaptation) -> list[Candidate]:
    """Return what is tried, cheap ones first."""
    first = [Candidate("head", {})]
    if has_batch_norm(adaptation.network):
        first.append(Candidate("batchnorm", {}))
    factor = 10.0 if has_batch_norm(adaptation.network) else 1.0
    tuned = [Candidate("last-layers", {})]
    tuned += [Candidate(method, {"learning_rate": factor * rate}) for rate in _RATES for method in ("lp-ft", "layer-decay")]
    return [*first, *tuned, Candidate("lora", {})]


def adapt_automatically(
    fresh: Callable[[str], Adaptation],
    budget_s: float,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    tried: Sequence[Candidate] | None = None,
) -> tuple[Adaptation, Outcome, str, tuple[Trial, ...]]:
    """Return the best candidate by validation rows with its adapted model, its method's name and all trials.

    Args:
        fresh: makes an adaptation of the pretrained model anew, whose checkpoints lie in a folder of the given name.
        budget_s: no candidate begins, and none goes on, after so many seconds; the first one is always finished.
        on_trial: told of each that ended.
        tried: the candidates.

    Raises:
        MissingPackageError: optuna is not installed.
        MonographError: no candidate came to an end.
    """
    optuna = require_optuna()
    deadline = time.monotonic() + budget_s
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_KEPT_OF)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    best: tuple[float, Adaptation, Outcome, str] | None = None
    trials: list[Trial] = []
    for number, candidate in enumerate(tried or candidates(fresh("plan"))):
        if trials and time.monotonic() > deadline:
            trials.append(Trial(candidate.method, candidate.settings, None, 0, "out of time", 0.0))
            continue
        adaptation, began = fresh(f"{number}-{candidate.method}"), time.monotonic()
        adaptation = replace(adaptation, settings=dict(adaptation.settings) | candidate.settings)
        is_cheap = candidate.method in ("head", "batchnorm")
        watch = _Watch(None if is_cheap else study.ask(), math.inf if not trials else deadline, adaptation)
        state, outcome = "finished", None
        try:
            outcome = METHODS[candidate.method].adapt(watch.watched())
        except _Stopped as stopped:
            state = stopped.state
        except (MonographError, MissingPackageError) as error:
            state = f"failed: {error}"
        value = watch.told() if outcome is None else adaptation.quality(adaptation.model, adaptation.rows["validation"])
        watch.tell(study, optuna, value if outcome is not None else None)
        trials.append(Trial(candidate.method, candidate.settings, value, watch.epochs, state, time.monotonic() - began))
        on_trial(trials[-1])
        if outcome is not None and value is not None and (best is None or value > best[0]):
            best = value, adaptation, outcome, candidate.method
    if best is None:
        raise MonographError(f"no method came to an end: {'; '.join(f'{one.method} {one.state}' for one in trials)}")
    return best[1], best[2], best[3], tuple(trials)


class _Watch:
    """Reports the epochs of a candidate's last stage to the study, and stops it where that or the clock says so."""

    def __init__(self, trial: Any, deadline: float, adaptation: Adaptation) -> None:
        self.trial, self.deadline, self.adaptation = trial, deadline, adaptation
        self.best: float | None = None
        self.epochs = 0

    def watched(self) -> Adaptation:
        """Return the adaptation, which tells this of its steps and epochs."""
        return replace(self.adaptation, on_step=self._step, on_epoch=self._epoch)

    def _step(self, stage: str, step: int, steps: int, loss: float) -> None:
        self.adaptation.on_step(stage, step, steps, loss)
        if time.monotonic() > self.deadline:
            raise _Stopped("out of time")

    def _epoch(self, stage: str, number: int, epoch: Epoch) -> None:
        self.adaptation.on_epoch(stage, number, epoch)
        if stage == "head" or self.trial is None:
            return
        value = epoch.validation_top1 if math.isfinite(epoch.validation_top1) else -epoch.validation_loss
        self.best, self.epochs = max(value, self.best if self.best is not None else value), number + 1
        self.trial.report(value, number + 1)
        if self.trial.should_prune():
            raise _Stopped("stopped")

    def told(self) -> float | None:
        """Return the best epoch in the unit of the quality; None of several labels, whose epochs are compared by their loss."""
        contract = self.adaptation.model.contract
        return None if contract.kind is Kind.SCORES and contract.class_names is not None else self.best

    def tell(self, study: Any, optuna: Any, value: float | None) -> None:
        """Close the trial in the study."""
        if self.trial is None:
            return
        if value is None:
            states = optuna.trial.TrialState
            study.tell(self.trial, state=states.FAIL if self.best is None else states.PRUNED)
        else:
            study.tell(self.trial, value)


def require_optuna() -> Any:
    """Return the module.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError("--method auto needs the package optuna: pip install 'monograph[adapt]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
