"""What a fusion gains over its best member, told on rows that its numbers were not fitted on.

Each form is fitted on one half of the rows and scored on the other, both ways.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import FusionError
from monograph.export.fusion.fit_forms import Validation, fit_form, mix
from monograph.export.fusion.forms import Form
from monograph.export.fusion.weights import Gain

Array = npt.NDArray[Any]
FEWEST_ROWS = 20
"""Fewer rows are not halved: no gain is told."""
_RESAMPLES = 2000


def mix_held_out(form: Form, validation: Validation, *, temperature: bool, search: str, seed: int) -> Array | None:
    """Return the fused output ``[n, …]``, each row by numbers fitted on the other half.

    None where there are too few rows, or where one half does not suffice for this form.
    """
    if len(validation.labels) < FEWEST_ROWS:
        return None
    halves = _halves(validation, seed)
    mixed: Array | None = None
    for fitted_on, scored_on in (halves, halves[::-1]):
        try:
            fit = fit_form(form, validation.take(fitted_on), temperature=temperature, search=search)
        except FusionError:  # a class without a row in one half
            return None
        output = mix(form, validation.take(scored_on), fit)
        mixed = np.zeros((len(validation.labels), *output.shape[1:])) if mixed is None else mixed
        mixed[scored_on] = output
    return mixed


def held_out_score(mixed: Array | None, validation: Validation) -> float:
    """Return how good a fused output is, higher is better: points of accuracy, or the RMSE, negative."""
    return -np.inf if mixed is None else float(_score(_row_scores(mixed, validation), validation))


def bootstrap_gain(held_out: Mapping[str, Array | None], chosen: str, validation: Validation, seed: int) -> Gain | None:
    """Bootstrap the gain over the best member; where forms compete, each resample chooses anew, scored on what it left out.

    Args:
        held_out: each form's output from :func:`mix_held_out`.
        chosen: the name of the form that was chosen.
        validation: the rows.
        seed: of the resamples.
    """
    tried = {name: mixed for name, mixed in held_out.items() if mixed is not None}
    if chosen not in tried:
        return None
    members = np.stack([_row_scores(output, validation) for output in validation.outputs])  # [m, n]
    forms = np.stack([_row_scores(mixed, validation) for mixed in tried.values()])  # [forms, n]
    best = int(_score(members, validation).argmax())
    row_count, rng, gains = members.shape[1], np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, row_count, row_count)
        scored = np.setdiff1d(np.arange(row_count), drawn) if len(tried) > 1 else drawn
        form = int(_score(forms[:, drawn], validation).argmax())
        gains.append(_score(forms[form, scored], validation) - _score(members[best, scored], validation))
    low, high = np.quantile(gains, (0.025, 0.975))
    observed = _score(forms[list(tried).index(chosen)], validation) - _score(members[best], validation)
    return Gain(
        amount=float(observed),
        low=float(low),
        high=float(high),
        luck_probability=float(np.mean(np.array(gains) <= 0)),
        best_member=validation.names[best],
        unit="points" if validation.has_classes else "RMSE",
        forms_tried=tuple(tried),
    )


def _halves(validation: Validation, seed: int) -> tuple[Array, Array]:
    """Draw two halves; each has the classes in the proportion in which all rows have them."""
    order = np.random.default_rng(seed).permutation(len(validation.labels))
    if validation.has_classes:
        order = order[np.argsort(validation.labels[order], kind="stable")]
    return order[::2], order[1::2]


def _row_scores(output: Array, validation: Validation) -> Array:
    """Return ``[n]``: whether each row is right, or its mean squared error, negative."""
    if validation.has_classes:
        return np.asarray(output.argmax(axis=1) == validation.labels, np.float64)
    return np.asarray(-((output - validation.labels) ** 2).reshape(len(output), -1).mean(axis=1))


def _score(row_scores: Array, validation: Validation) -> Array:
    """Return points of accuracy, or the RMSE, negative, of ``[…, n]`` row scores."""
    mean = row_scores.mean(axis=-1)
    return np.asarray(100 * mean if validation.has_classes else -np.sqrt(np.maximum(-mean, 0.0)))
