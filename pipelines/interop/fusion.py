"""What fusing models gives, from their stored outputs alone: weights, gain, diversity, and what a cascade would do.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monograph.errors import DataError, FusionError
from monograph.export.fusion.choose import choose_form
from monograph.export.fusion.fit_forms import Validation, fit_form
from monograph.export.fusion.forms import Form
from monograph.export.fusion.gain import bootstrap_gain, mix_held_out
from monograph.models.contract import Kind
from monograph.models.data.rows import Array
from monograph.pipelines.interop.members import Model, stratified_halves, validation_of
from monograph.pipelines.interop.result import Cascade, Diversity, Fusion
from monograph.runtime.metrics import as_probabilities, score_classifier
from monograph.runtime.metrics.diversity import (
    churn,
    disagreement,
    double_fault,
    error_consistency,
    oracle_accuracy,
    pair_counts,
    with_interval,
    yules_q,
)
from monograph.runtime.results import Accuracy, Score
from monograph.runtime.statistics import proportion_interval

_STATISTICS = {
    "disagreement": disagreement,
    "double fault": double_fault,
    "Yule's Q": yules_q,
    "error consistency": error_consistency,
    "oracle accuracy": oracle_accuracy,
}


def fuse_outputs(models: Sequence[Model], rows_sha256: str, latency_ms: float | None, macs: int | None, seed: int) -> Fusion:
    """Return what the weighted fusion of ``models`` gives, held out: no model is run for it.

    Args:
        models: two or more, with answers.
        rows_sha256: of the rows.
        latency_ms: of all of them one after another.
        macs: of the fused graph; None where they cannot be counted.
        seed: of the halves and the resamples.
    """
    names = tuple(model.name for model in models)
    try:
        validation = validation_of(models, rows_sha256)
        form = choose_form([model.file.contract for model in models], names, None)
        fit = fit_form(form, validation, temperature=False, search="nll")
        mixed = mix_held_out(form, validation, temperature=False, search="nll", seed=seed)
    except (FusionError, DataError) as error:
        return Fusion(names, reason=str(error))
    if mixed is None:
        return Fusion(names, reason="not enough evidence: one half of the rows does not suffice to fit weights")
    gain = bootstrap_gain({form.name: mixed}, form.name, validation, seed)
    assert gain is not None
    probabilities = [as_probabilities(output, kind) for output, kind in zip(validation.outputs, validation.kinds, strict=True)]
    best = score_classifier(probabilities[names.index(gain.best_member)], validation.labels)
    return Fusion(
        members=names,
        form=form.name,
        weights=fit.weights,
        gain=gain,
        accuracy=_score(form, mixed, validation),
        ece_before=best.ece,
        ece_tempered=_tempered_ece(form, validation, seed),
        macs=macs,
        latency_ms=latency_ms,
        diversity=diversity(*probabilities, labels=validation.labels, seed=seed) if len(models) == 2 else None,
    )


def _score(form: Form, mixed: Array, validation: Validation) -> Accuracy:
    return score_classifier(as_probabilities(mixed, form.output_kind(validation.kinds[0])), validation.labels)


def _tempered_ece(form: Form, validation: Validation, seed: int) -> float | None:
    if Kind.LOGITS not in validation.kinds:
        return None
    mixed = mix_held_out(form, validation, temperature=True, search="nll", seed=seed)
    return None if mixed is None else _score(form, mixed, validation).ece


def diversity(first: Array, second: Array, *, labels: Array, seed: int) -> Diversity:
    """Return how differently two classifiers err: probabilities ``[n, c]`` in one order of classes."""
    predicted = first.argmax(axis=1), second.argmax(axis=1)
    counts = pair_counts(*(one == labels for one in predicted))
    scores = {name: with_interval(counts, statistic, seed) for name, statistic in _STATISTICS.items()}
    share = churn(*predicted)
    told = proportion_interval(round(share * len(labels)), len(labels))
    scores["churn"] = Score(share, told.low, told.high)
    return Diversity(scores, counts.only_first, counts.only_second)


def estimate_cascade(first: Model, second: Model, rows_sha256: str, seed: int) -> Cascade:
    """Return what passing only unsure rows from the cheaper model to the dearer one gives.

    The threshold on the cheap model's largest probability is the lowest with which the cascade is as often right as the dear
    model on one half of the rows; shares and accuracy are told of the other half, both ways.
    """
    if first.macs is None or second.macs is None:
        return Cascade(first.name, second.name, reason="multiply-accumulates cannot be counted: which one is cheap is not known")
    cheap, dear = sorted((first, second), key=lambda one: one.macs or 0)
    assert cheap.macs is not None
    assert dear.macs is not None
    if cheap.macs >= 0.8 * dear.macs:
        return Cascade(cheap.name, dear.name, reason="both cost about the same, so that a cascade saves nothing")
    try:
        validation = validation_of([cheap, dear], rows_sha256)
    except (FusionError, DataError) as error:
        return Cascade(cheap.name, dear.name, reason=str(error))
    sure, right = _sure_and_right(validation)
    hard, correct = np.zeros(len(sure), bool), np.zeros(len(sure), bool)
    parts = stratified_halves(validation.labels, seed)
    for fitted, told in (parts, parts[::-1]):
        threshold = _threshold(sure[fitted], right[:, fitted])
        hard[told] = sure[told] < threshold
        correct[told] = np.where(hard[told], right[1, told], right[0, told])
    return Cascade(
        cheap.name,
        dear.name,
        hard_share=float(hard.mean()),
        top1=float(correct.mean()),
        dear_top1=float(right[1].mean()),
        macs=cheap.macs + float(hard.mean()) * dear.macs,
        threshold_probability=min(_threshold(sure, right), 1.0),
    )


def _sure_and_right(validation: Validation) -> tuple[Array, Array]:
    """Return the cheap model's largest probability ``[n]``, and whether each of the two is right: bool ``[2, n]``."""
    given = [as_probabilities(output, kind) for output, kind in zip(validation.outputs, validation.kinds, strict=True)]
    return given[0].max(axis=1), np.stack([one.argmax(axis=1) == validation.labels for one in given])


def _threshold(sure: Array, right: Array) -> float:
    """Return the lowest probability below which rows must be passed on for the cascade to be as good as the dear model."""
    order = np.argsort(sure, kind="stable")
    passed = np.concatenate([[0], np.cumsum(right[1, order])])  # right ones among the k least sure, if passed on
    kept = right[0].sum() - np.concatenate([[0], np.cumsum(right[0, order])])
    fewest = int(np.argmax(passed + kept >= right[1].sum()))
    return float(sure[order[fewest]]) if fewest < len(sure) else float("inf")
