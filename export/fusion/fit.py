"""Fit what a fusion leaves open on labelled validation rows: weights, temperatures, a combiner, the form itself.

Each candidate is fitted on one half of the rows and scored on the other, both ways, so that the gain that is told is a
gain on rows not fitted on; then it is fitted once more on all rows.

Shape letters: ``n`` rows, ``c`` classes, ``m`` members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError, FusionError
from monograph.export.fusion.align import align_classes, class_leader
from monograph.export.fusion.calibrate import fit_stacking, fit_temperature, select_greedily
from monograph.export.fusion.forms import FORMS, Form, Mixing
from monograph.export.fusion.fuse import in_fused_order
from monograph.export.fusion.plan import choose_form, member_names
from monograph.export.fusion.weights import Gain, WeightFit, fit_weights
from monograph.models.contract import Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.apart import too_large
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
AUTO = "auto"
SEARCHES = ("nll", "greedy")
"""How weights are chosen: at the minimum of the NLL, or by greedy selection of members."""
_AUTO_FORMS = ("logits", "probs", "geometric", "vote", "stack")
_RESAMPLES = 2000
_FEWEST_ROWS = 20
"""Fewer rows are not halved: no gain is told."""


@dataclass(frozen=True)
class _Validation:
    """The members' outputs on the validation rows, classes in the fused order."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    outputs: tuple[Array, ...]
    """``[n, c]`` a member."""
    labels: Array
    rows_sha256: str

    def take(self, indices: Array) -> _Validation:
        return replace(self, outputs=tuple(output[indices] for output in self.outputs), labels=self.labels[indices])


def fit_fusion(
    files: Sequence[OnnxFile],
    rows: Sequence[Rows],
    combine: str | None = None,
    *,
    temperature: bool = False,
    search: str = "nll",
    seed: int = 0,
) -> WeightFit:
    """Fit a fusion on validation rows; ``rows`` holds the same rows once a member, ready for its inputs.

    Args:
        files: the members.
        rows: as many as members.
        combine: the form; ``auto`` chooses it; None takes what fits the members.
        temperature: fit a temperature for each member that gives logits before anything is mixed.
        search: ``nll`` or ``greedy``.
        seed: of the halves and the bootstrap.

    Raises:
        FusionError: the members are no classifiers, or cannot be fused.
        DataError: the rows have no labels, or labels of other classes.
    """
    if search not in SEARCHES:
        raise FusionError(f"unknown search {search!r}: choose from {', '.join(SEARCHES)}")
    names = member_names([file.path for file in files])
    contracts = [file.contract for file in files]
    form = choose_form(contracts, names, None if combine == AUTO else combine)
    if not contracts[0].kind.has_classes:
        raise FusionError(f"{names[0]} gives {contracts[0].kind.value}: weights are fitted for classifiers only, give --weights")
    validation = _run_members(files, names, rows)
    forms = _candidates(contracts, names, validation) if combine == AUTO else [form]
    held_out = {one.name: _held_out(one, validation, temperature, search, seed) for one in forms}
    chosen = max(forms, key=lambda one: _score(held_out[one.name], validation)) if len(forms) > 1 else forms[0]
    fit = _fit_form(chosen, validation, temperature, search)
    return replace(fit, form=chosen.name, gain=_gain(held_out, chosen, validation, seed))


def _run_members(files: Sequence[OnnxFile], names: Sequence[str], rows: Sequence[Rows]) -> _Validation:
    contracts = [file.contract for file in files]
    _, class_positions = align_classes(contracts, names)
    leader = class_leader(contracts) or 0  # each member's rows number the labels in its own order; this one's is the fused
    labels = rows[leader].required_labels().astype(np.int64)
    outputs = []
    for file, name, positions, member_rows in zip(files, names, class_positions, rows, strict=True):
        session = open_session(file.path, spinning=False, mapped=too_large(file.size_bytes))
        output = run_all_rows(session, file.contract, member_rows)
        output = in_fused_order(output, positions, name, file.contract.kind)
        _check_fits_labels(output, labels, name, rows[leader].origin)
        outputs.append(output.astype(np.float64))
        if not np.isfinite(output).all():
            raise FusionError(f"{name}'s output is not finite on the rows to fit on: weights cannot be fitted")
    if len({output.shape for output in outputs}) > 1:
        counts = ", ".join(f"{name} {output.shape[1]}" for name, output in zip(names, outputs, strict=True))
        raise FusionError(f"members give different numbers of classes ({counts}): only models of the same classes can be fused")
    kinds = tuple(contract.kind for contract in contracts)
    return _Validation(tuple(names), kinds, tuple(outputs), labels, rows[leader].sha256())


def _check_fits_labels(output: Array, labels: Array, name: str, origin: str) -> None:
    if output.ndim != 2 or len(output) != len(labels):
        raise FusionError(
            f"{name} gives an array of shape {output.shape} for {len(labels)} labels: "
            "weights are fitted for one row of classes a label"
        )
    if labels.min() < 0 or labels.max() >= output.shape[1]:
        raise DataError(
            f"{origin}: labels run from {labels.min()} to {labels.max()}, "
            f"but {name} has {output.shape[1]} classes, counted from 0"
        )


def _candidates(contracts: Sequence[Any], names: Sequence[str], validation: _Validation) -> list[Form]:
    """Return the forms that the members and the rows allow."""
    forms = []
    for name in _AUTO_FORMS:
        try:
            form = choose_form(contracts, names, name)
            if name in ("stack", "vote"):
                _fit_form(form, validation, temperature=False, search="nll")
        except FusionError:  # it does not fit these members, which is why the form is to be chosen
            continue
        forms.append(form)
    return forms


def _fit_form(form: Form, validation: _Validation, temperature: bool, search: str) -> WeightFit:
    """Fit one form on all rows given."""
    temperatures = _temperatures(validation, temperature)
    converted = _converted(form, validation, temperatures)
    labels = validation.labels
    are_logits = form.name in ("logits", "geometric", "stack")  # what these mix goes through softmax afterwards
    fit = fit_weights(converted, labels, are_logits=are_logits, rows_sha256=validation.rows_sha256)
    equal = (1 / len(converted),) * len(converted)
    if form.name == "stack":
        stacking = fit_stacking(converted, labels)
        fit = replace(fit, weights=equal, stacking=stacking)
    elif search == "greedy":
        fit = replace(fit, weights=select_greedily(_converted(FORMS["probs"], validation, temperatures), labels))
    elif form.name == "vote":
        fit = replace(fit, weights=equal)  # a count of votes has no gradient to follow; greedy search weighs it
    fit = replace(fit, temperatures=temperatures if temperature else None)
    mixed = _mix(form, validation, fit)
    return replace(fit, nll=_nll(form, mixed, labels))


def _temperatures(validation: _Validation, wanted: bool) -> tuple[float, ...]:
    return tuple(
        fit_temperature(output, validation.labels) if wanted and kind is Kind.LOGITS else 1.0
        for output, kind in zip(validation.outputs, validation.kinds, strict=True)
    )


def _converted(form: Form, validation: _Validation, temperatures: Sequence[float]) -> list[Array]:
    parts = zip(validation.outputs, validation.kinds, temperatures, strict=True)
    return [form.convert(output / temperature, kind) for output, kind, temperature in parts]


def _mix(form: Form, validation: _Validation, fit: WeightFit) -> Array:
    """Return the fused output ``float64 [n, c]``, as the graph would compute it."""
    converted = _converted(form, validation, fit.temperatures or (1.0,) * len(validation.names))
    running = [index for index, weight in enumerate(fit.weights) if weight > 0]
    mixing = Mixing(
        tuple(validation.names[index] for index in running), tuple(fit.weights[index] for index in running), fit.stacking
    )
    return form.combine([converted[index] for index in running], mixing)


def _nll(form: Form, mixed: Array, labels: Array) -> float:
    kind = form.output_kind(Kind.LOGITS)
    log_probabilities = FORMS["geometric"].convert(mixed, kind)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def _held_out(form: Form, validation: _Validation, temperature: bool, search: str, seed: int) -> Array | None:
    """Return the fused output ``[n, c]``, each row by numbers fitted on the other half; None for too few rows."""
    row_count = len(validation.labels)
    if row_count < _FEWEST_ROWS:
        return None
    order = np.random.default_rng(seed).permutation(row_count)
    halves = order[: row_count // 2], order[row_count // 2 :]
    mixed = np.zeros((row_count, validation.outputs[0].shape[1]))
    for fitted_on, scored_on in (halves, halves[::-1]):
        try:
            fit = _fit_form(form, validation.take(fitted_on), temperature, search)
        except FusionError:  # a class without a row in one half
            return None
        mixed[scored_on] = _mix(form, validation.take(scored_on), fit)
    return mixed


def _score(mixed: Array | None, validation: _Validation) -> float:
    return -1.0 if mixed is None else float(np.mean(mixed.argmax(1) == validation.labels))


def _gain(held_out: dict[str, Array | None], chosen: Form, validation: _Validation, seed: int) -> Gain | None:
    """Bootstrap the gain over the best member; where forms compete, each resample chooses anew, scored on what it left out."""
    tried = {name: mixed for name, mixed in held_out.items() if mixed is not None}
    if chosen.name not in tried:
        return None
    labels = validation.labels
    members = np.stack([output.argmax(1) == labels for output in validation.outputs]).astype(np.float64)  # [m, n]
    forms = np.stack([mixed.argmax(1) == labels for mixed in tried.values()]).astype(np.float64)  # [forms, n]
    best = int(members.mean(1).argmax())
    rng, gains = np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, len(labels), len(labels))
        scored = np.setdiff1d(np.arange(len(labels)), drawn) if len(tried) > 1 else drawn
        form = int(forms[:, drawn].mean(1).argmax())
        gains.append(100 * (forms[form, scored].mean() - members[best, scored].mean()))
    low, high = np.quantile(gains, (0.025, 0.975))
    observed = 100 * float(forms[list(tried).index(chosen.name)].mean() - members[best].mean())
    luck = float(np.mean(np.array(gains) <= 0))
    return Gain(observed, float(low), float(high), luck, validation.names[best], tuple(tried))
