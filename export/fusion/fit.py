"""Fit what a fusion leaves open on labelled validation rows: weights, temperatures, a combiner, the form itself.

Each candidate is fitted on one half of the rows and scored on the other, both ways, so that the gain that is told is a
gain on rows not fitted on; then it is fitted once more on all rows.

Shape letters: ``n`` rows, ``c`` classes, ``k`` outputs that are no classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError, FusionError
from monograph.export.fusion.align import align_classes, class_leader, missing_value
from monograph.export.fusion.choose import choose_form
from monograph.export.fusion.fit_forms import Validation, fit_form
from monograph.export.fusion.forms import Form
from monograph.export.fusion.fuse import in_fused_order
from monograph.export.fusion.gain import FEWEST_ROWS, bootstrap_gain, held_out_score, mix_held_out
from monograph.export.fusion.naming import member_names
from monograph.export.fusion.weights import WeightFit
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.apart import too_large
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
AUTO = "auto"
SEARCHES = ("nll", "greedy")
"""How weights are chosen: at the minimum of the loss, or by greedy selection of members."""
_AUTO_FORMS = ("logits", "probs", "class-weights", "geometric", "vote", "mean", "stack")


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

    The loss is the NLL for classifiers, whose labels are class numbers, and the mean squared error for all other outputs,
    whose labels are targets of the outputs' shape.

    Args:
        files: the members.
        rows: as many as members.
        combine: the form; ``auto`` chooses it; None takes what fits the members.
        temperature: fit a temperature for each member that gives logits before anything is mixed.
        search: ``nll`` or ``greedy``.
        seed: of the halves and the bootstrap.

    Raises:
        FusionError: the members cannot be fused, or there is nothing to fit.
        DataError: the rows have no labels, labels of other classes, or targets of another shape.
    """
    if search not in SEARCHES:
        raise FusionError(f"unknown search {search!r}: choose from {', '.join(SEARCHES)}")
    names = member_names([file.path for file in files])
    contracts = [file.contract for file in files]
    form = choose_form(contracts, names, None if combine == AUTO else combine)
    _check_something_to_fit(form, contracts, names, temperature)
    validation = _run_members(files, names, rows)
    forms = _candidates(contracts, names, validation) if combine == AUTO else [form]
    held_out = {one.name: mix_held_out(one, validation, temperature=temperature, search=search, seed=seed) for one in forms}
    cautions = []
    if combine == AUTO and all(mixed is None for mixed in held_out.values()):
        forms = [form]
        cautions.append(f"too few rows to choose a form ({FEWEST_ROWS} needed), so {form.name} is what fits the members")
    chosen = max(forms, key=lambda one: held_out_score(held_out.get(one.name), validation))
    fit = fit_form(chosen, validation, temperature=temperature, search=search)
    gain = bootstrap_gain(held_out, chosen.name, validation, seed)
    if gain is None:
        few = len(validation.labels) < FEWEST_ROWS
        reason = f"too few rows ({FEWEST_ROWS} needed)" if few else f"half of the rows do not suffice for {chosen.name}"
        cautions.append(f"no gain is told: {reason}")
    return replace(fit, form=chosen.name, gain=gain, cautions=tuple(cautions))


def _check_something_to_fit(form: Form, contracts: Sequence[Contract], names: Sequence[str], temperature: bool) -> None:
    if form.joins_features:
        raise FusionError(f"--combine {form.name} puts outputs side by side and has nothing to fit: leave --fit out")
    if temperature and not any(contract.kind is Kind.LOGITS for contract in contracts):
        kinds = ", ".join(sorted({contract.kind.value for contract in contracts}))
        raise FusionError(f"--calibrate fits temperatures of logits, but {' and '.join(names)} give {kinds}: leave it out")


def _run_members(files: Sequence[OnnxFile], names: Sequence[str], rows: Sequence[Rows]) -> Validation:
    contracts = [file.contract for file in files]
    _, class_positions = align_classes(contracts, names)
    leader = class_leader(contracts) or 0  # each member's rows number the labels in its own order; this one's is the fused
    labels = rows[leader].required_labels()
    outputs = []
    for file, name, positions, member_rows in zip(files, names, class_positions, rows, strict=True):
        session = open_session(file.path, mapped=too_large(file.size_bytes))
        output = run_all_rows(session, file.contract, member_rows)
        output = in_fused_order(output, positions, name, missing_value(file.contract.kind))
        if not np.isfinite(output).all():
            raise FusionError(f"{name}'s output is not finite on the rows to fit on: weights cannot be fitted")
        if file.contract.kind.has_classes:
            _check_fits_labels(output, labels, name, rows[leader].origin)
        outputs.append(output.astype(np.float64))
    _check_same_shape(outputs, names, contracts[0].kind)
    if contracts[0].kind.has_classes:
        labels = labels.astype(np.int64)
    else:
        labels = _targets_like(outputs[0], labels, names[0], rows[leader].origin)
    kinds = tuple(contract.kind for contract in contracts)
    return Validation(tuple(names), kinds, tuple(outputs), labels, rows[leader].sha256())


def _check_fits_labels(output: Array, labels: Array, name: str, origin: str) -> None:
    if output.ndim != 2 or len(output) != len(labels):
        raise FusionError(
            f"{name} gives an array of shape {output.shape} for {len(labels)} labels: "
            "weights are fitted for one row of classes a label"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise DataError(
            f"{origin}: labels are {labels.dtype} {list(labels.shape)}, but {name} is a classifier: give class numbers"
        )
    if labels.min() < 0 or labels.max() >= output.shape[1]:
        raise DataError(
            f"{origin}: labels run from {labels.min()} to {labels.max()}, "
            f"but {name} has {output.shape[1]} classes, counted from 0"
        )


def _check_same_shape(outputs: Sequence[Array], names: Sequence[str], kind: Kind) -> None:
    if len({output.shape for output in outputs}) == 1:
        return
    if kind.has_classes:
        counts = ", ".join(f"{name} {output.shape[1]}" for name, output in zip(names, outputs, strict=True))
        raise FusionError(f"members give different numbers of classes ({counts}): only models of the same classes can be fused")
    shapes = ", ".join(f"{name} {list(output.shape)}" for name, output in zip(names, outputs, strict=True))
    raise FusionError(f"members give arrays of different shapes ({shapes}): only outputs of one shape can be fused")


def _targets_like(output: Array, labels: Array, name: str, origin: str) -> Array:
    """Return targets ``float64`` of the shape of ``output``; ``[n]`` and ``[n, 1]`` are the same thing."""
    if labels.size != output.size or len(labels) != len(output) or np.squeeze(labels).shape != np.squeeze(output).shape:
        raise DataError(
            f"{origin}: targets have the shape {list(labels.shape)}, but {name} gives {list(output.shape)}: "
            "give one target for each number of the output"
        )
    if labels.dtype.kind not in "biuf" or not np.isfinite(labels).all():
        raise DataError(f"{origin}: targets are not all finite numbers: correct or drop such rows")
    return labels.reshape(output.shape).astype(np.float64)


def _candidates(contracts: Sequence[Contract], names: Sequence[str], validation: Validation) -> list[Form]:
    """Return the forms that the members and the rows allow."""
    forms = []
    for name in _AUTO_FORMS:
        try:
            form = choose_form(contracts, names, name)
            if name in ("stack", "vote"):
                fit_form(form, validation, temperature=False, search="nll")
        except FusionError:  # it does not fit these members, which is why the form is to be chosen
            continue
        forms.append(form)
    return forms
