"""What can be told to be wrong before anything is loaded, and a folder that a refusal leaves as it was."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from monograph.errors import ConfigError, InputError
from monograph.pipelines.adapt.auto import AUTO, parse_budget, require_optuna
from monograph.pipelines.adapt.methods import METHODS
from monograph.pipelines.adapt.parts import SPLITS_FILE
from monograph.pipelines.adapt.standing import RESULT_FILE
from monograph.pipelines.training import TrainingSettings
from monograph.pipelines.training.checkpoint import FILE as CHECKPOINT
from monograph.pipelines.training.loop import SCHEDULES
from monograph.pipelines.training.processes import is_main_process, trains_on_processor
from monograph.runtime.targets import find_target

CHECKPOINTS, FEATURES = "checkpoints", "features"
_PRECISIONS = ("no", "fp16", "bf16")
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "epochs": (lambda value: value >= 1, "1 or more"),
    "batch_size": (lambda value: value >= 1, "1 or more"),
    "gradient_accumulation": (lambda value: value >= 1, "1 or more"),
    "learning_rate": (lambda value: value > 0, "a number above 0"),
    "weight_decay": (lambda value: value >= 0, "0 or more"),
    "label_smoothing": (lambda value: 0 <= value < 1, "a share from 0 to below 1"),
    "max_gradient_norm": (lambda value: value > 0, "a number above 0"),
    "ema_decay": (lambda value: 0 < value < 1, "a number between 0 and 1"),
    "patience": (lambda value: value >= 0, "0 or more"),
}


def check_request(
    folder: Path,
    method: str,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    budget: str | None,
    on: Sequence[str],
    *,
    resume: bool,
) -> None:
    """Refuse what no data and no model could make right.

    Raises:
        ConfigError: a method, an option, a setting, a budget or a target that there is not; or a folder that is taken.
        MissingPackageError: the method ``auto`` without optuna.
    """
    if method != AUTO and method not in METHODS:
        raise ConfigError(f"unknown method {method!r}: choose from {', '.join(METHODS)}, {AUTO}")
    known = set(METHODS[method].options) if method != AUTO else set()
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"method {method} has no option {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}")
    if method == AUTO:
        parse_budget(budget)
        require_optuna()
    elif budget is not None:
        raise ConfigError(f"--budget is for --method {AUTO}, and the method is {method}: leave it out")
    _check_settings(settings)
    for target in on:
        find_target(target)
    _check_folder(folder, resume=resume)


def _check_settings(settings: Mapping[str, Any]) -> None:
    fields = {name for name in TrainingSettings.__dataclass_fields__ if name != "select"}
    if unknown := sorted(set(settings) - fields):
        raise ConfigError(f"a training has no setting {unknown[0]!r}; it has {', '.join(sorted(fields))}")
    for name, value in settings.items():
        if name in _RANGES and value is not None:
            is_fit, expected = _RANGES[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not is_fit(value):
                raise ConfigError(f"setting {name} is {value!r}: give {expected}")
    for name, choices in (("schedule", SCHEDULES), ("mixed_precision", _PRECISIONS)):
        if settings.get(name, choices[0]) not in choices:
            raise ConfigError(f"setting {name} is {settings[name]!r}: choose from {', '.join(choices)}")
    if settings.get("mixed_precision") == "fp16" and trains_on_processor():
        raise ConfigError("setting mixed_precision is 'fp16', which needs a GPU, and there is none: take bf16, or leave it out")


def _check_folder(folder: Path, *, resume: bool) -> None:
    if (folder / RESULT_FILE).exists():
        raise ConfigError(f"{folder} holds a finished adaptation: give another folder, or remove it")
    if (folder / CHECKPOINTS).exists() and not resume:
        raise ConfigError(f"{folder} holds an adaptation that was stopped: go on with it by --resume, or give another folder")
    # One that was stopped before the first checkpoint has left its parts or features, if anything.
    if resume and not any((folder / name).exists() for name in (CHECKPOINTS, FEATURES, SPLITS_FILE)):
        raise ConfigError(f"{folder} holds no adaptation to resume: leave --resume out")


@contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """Remove what was written to ``folder`` where the input turns out to be wrong; a training that has begun stays."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    before = set(folder.iterdir()) if folder.is_dir() else set()
    try:
        yield
    except InputError:
        if is_main_process() and folder.is_dir() and not any(folder.rglob(CHECKPOINT)):
            for entry in set(folder.iterdir()) - before:
                _remove(entry)
            for each in made:
                with suppress(OSError):
                    each.rmdir()
        raise


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
