"""What fusing models gives, from their stored outputs alone: weights, gain, diversity, and what a cascade would do.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from monograph.errors import DataError, FusionError
from monograph.export.fusion.align import class_leader
from monograph.export.fusion.choose import choose_form
from monograph.export.fusion.fit_forms import Validation, fit_form, mix
from monograph.export.fusion.forms import Form
from monograph.export.fusion.gain import mix_held_out
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Array
from monograph.pipelines.interop.members import Model, halves, validation_of
from monograph.pipelines.interop.result import AUC, Cascade, Diversity, Fusion, worth
from monograph.pipelines.interop.yardstick import Yardstick
from monograph.runtime.metrics import as_probabilities
from monograph.runtime.metrics.blocks import no_score, score_of
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
from monograph.runtime.results import Score
from monograph.runtime.statistics import CONFIDENCE, paired_bootstrap_interval, proportion_interval

_STATISTICS = {
    "disagreement": disagreement,
    "double fault": double_fault,
    "Yule's Q": yules_q,
    "error consistency": error_consistency,
    "oracle accuracy": oracle_accuracy,
}


@dataclass(frozen=True)
class Cost:
    """Of a fused graph, one row."""

    macs: int | None
    latency_ms: float | None


def fuse_outputs(models: Sequence[Model], yardstick: Yardstick, rows_sha256: str) -> Fusion:
    """Return what the weighted fusion of ``models`` gives, held out: no model is run for it, and what it costs is not told.

    Args:
        models: two or more, with answers.
        yardstick: by which it is judged.
        rows_sha256: of the rows.
    """
    names = tuple(model.name for model in models)
    try:
        validation = validation_of(models, rows_sha256)
        form = choose_form([model.file.contract for model in models], names, None)
        fit = fit_form(form, validation, temperature=False, search="nll")
        mixed = mix_held_out(form, validation, temperature=False, search="nll", seed=yardstick.seed)
    except (FusionError, DataError) as error:
        return Fusion(names, reason=str(error))
    if mixed is None:
        return Fusion(names, reason="not enough evidence: one half of the rows does not suffice to fit weights")
    members, labels = dict(zip(names, validation.outputs, strict=True)), _plain_labels(validation, yardstick)
    best = best_of(members, labels, yardstick)
    before = yardstick.accuracy(members[best], models[names.index(best)].kind, labels)
    return Fusion(
        members=names,
        form=form.name,
        weights=fit.weights,
        gain=yardstick.change(mixed, members[best], labels, best),
        score=yardstick.score(mixed, labels),
        accuracy=yardstick.accuracy(mixed, form.output_kind(models[0].kind), labels),
        ranking=yardstick.ranking(mixed, members, labels),
        ece_before=None if before is None else before.ece,
        ece_tempered=_tempered_ece(form, validation, yardstick),
        error_correlation=_error_correlation(*list(members.values())[:2], labels=labels)
        if len(models) == 2 and not yardstick.has_classes
        else None,
        diversity=_diversity(models, members, labels, yardstick) if len(models) == 2 else None,
    )


def mixed_as_teacher(models: Sequence[Model], fitted: Array, rows_sha256: str) -> tuple[Contract, Array]:
    """Return what a fusion gives for every row, ``[n, …]``, with weights from the rows at ``fitted``, and its contract.

    Raises:
        FusionError: they cannot be fused, or the rows do not suffice.
    """
    validation = validation_of(models, rows_sha256)
    contracts = [model.file.contract for model in models]
    form = choose_form(contracts, [model.name for model in models], None)
    fit = fit_form(form, validation.take(fitted), temperature=False, search="nll")
    leader = contracts[class_leader(contracts) or 0]
    return replace(leader, kind=form.output_kind(models[0].kind)), mix(form, validation, fit)


def best_of(outputs: Mapping[str, Array], labels: Array, yardstick: Yardstick) -> str:
    """Return the name of the model that is best by the yardstick."""
    return max(outputs, key=lambda name: worth(yardstick.metric, yardstick.value(outputs[name], labels)))


def _plain_labels(validation: Validation, yardstick: Yardstick) -> Array:
    """Return labels as the yardstick takes them: those of a yes or no are fitted as numbers."""
    labels = validation.labels
    return labels.reshape(len(labels)).astype(np.int64) if yardstick.metric == AUC else labels


def _tempered_ece(form: Form, validation: Validation, yardstick: Yardstick) -> float | None:
    if Kind.LOGITS not in validation.kinds:
        return None
    mixed = mix_held_out(form, validation, temperature=True, search="nll", seed=yardstick.seed)
    told = None if mixed is None else yardstick.accuracy(mixed, form.output_kind(validation.kinds[0]), validation.labels)
    return None if told is None else told.ece


def _error_correlation(first: Array, second: Array, *, labels: Array) -> Score:
    """Return Pearson's correlation of the errors; the mean of two models has what their errors have in common.

    Krogh and Vedelsby 1995, "Neural Network Ensembles, Cross Validation, and Active Learning".
    """
    errors = np.stack([(one - labels).reshape(len(labels), -1).mean(axis=1) for one in (first, second)], axis=1)
    if not np.ptp(errors, axis=0).all():
        return no_score("the errors of one of them do not vary")
    parts = np.concatenate([np.ones((len(errors), 1)), errors, errors**2, errors.prod(axis=1, keepdims=True)], axis=1)
    return score_of(paired_bootstrap_interval(parts, _pearson, confidence=CONFIDENCE))


def _pearson(sums: Array) -> Array:
    """Of sums of 1, x, y, x², y² and xy: ``[…, 6]``."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    scale = np.sqrt(np.maximum((n * xx - x * x) * (n * yy - y * y), np.finfo(np.float64).tiny))
    return np.asarray((n * xy - x * y) / scale)


def _diversity(models: Sequence[Model], members: Mapping[str, Array], labels: Array, yardstick: Yardstick) -> Diversity | None:
    probable = [yardstick.probabilities(members[model.name], model.kind) for model in models]
    if probable[0] is None or probable[1] is None:
        return None
    return diversity(probable[0], probable[1], labels=labels, seed=yardstick.seed)


def diversity(first: Array, second: Array, *, labels: Array, seed: int) -> Diversity:
    """Return how differently two classifiers err: probabilities ``[n, c]`` in one order of classes."""
    predicted = first.argmax(axis=1), second.argmax(axis=1)
    counts = pair_counts(*(one == labels for one in predicted))
    scores = {name: with_interval(counts, statistic, seed) for name, statistic in _STATISTICS.items()}
    share = churn(*predicted)
    told = proportion_interval(round(share * len(labels)), len(labels))
    scores["churn"] = Score(share, told.low, told.high)
    return Diversity(scores, counts.only_first, counts.only_second)


def estimate_cascade(
    first: Model, second: Model, yardstick: Yardstick, rows_sha256: str, latency_ms: Mapping[str, float | None]
) -> Cascade:
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
    hard = np.zeros(len(sure), bool)
    parts = halves(validation.labels, yardstick.seed)
    for fitted, told in (parts, parts[::-1]):
        hard[told] = sure[told] < _threshold(sure[fitted], right[:, fitted])
    cheap_output, dear_output = validation.outputs
    answered = np.where(hard[:, None], dear_output, cheap_output)
    share, cost, more = float(hard.mean()), latency_ms.get(cheap.name), latency_ms.get(dear.name)
    return Cascade(
        cheap.name,
        dear.name,
        hard_share=share,
        score=yardstick.score(answered, validation.labels),
        change=yardstick.change(answered, dear_output, validation.labels, dear.name),
        macs=cheap.macs + share * dear.macs,
        latency_ms=None if cost is None or more is None else cost + share * more,
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
