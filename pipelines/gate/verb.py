"""The line of the verb: read, refuse what proves nothing, run both models, check, conclude."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import monograph
from monograph.errors import ConfigError
from monograph.models.data.corrupt import fitting_corruptions
from monograph.models.data.rows import Array
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import OnnxFile
from monograph.models.seen import read_seen
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.gate.answers import check_alike, class_numbering, classifier_answers, finite_outputs
from monograph.pipelines.gate.bench import Bench, Model
from monograph.pipelines.gate.check import Check, conclude
from monograph.pipelines.gate.cost import latency_checks, placement_checks, ratio_check, size_checks, start_checks
from monograph.pipelines.gate.leak import refuse_seen_rows
from monograph.pipelines.gate.policy import Policy, default_policy, load_policy
from monograph.pipelines.gate.possible import check_possible, gate_targets, require_latency
from monograph.pipelines.gate.quality import (
    Pair,
    accuracy_check,
    calibration_checks,
    error_check,
    flip_checks,
    loss_family,
    parity_check,
    part_checks,
)
from monograph.pipelines.gate.verdict import Beside, Subject, Verdict
from monograph.pipelines.measure import onnx_file_of
from monograph.runtime.results import Evidence, Measurement
from monograph.runtime.statistics import mcnemar_p, proportion_interval
from monograph.runtime.targets import Target


def gate_model(
    candidate: str | Path,
    reference: str | Path,
    data: str | DataSpec | None = None,
    *,
    policy: str | Path | Policy | None = None,
    on: Sequence[str] = (),
    group: str | None = None,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Verdict:
    """Judge whether ``candidate`` may take the place of ``reference``.

    Args:
        candidate: an ONNX file, or a cascade in stages.
        reference: likewise: what it is compared with, such as the fused teacher; it answers on this machine's processor.
        data: DATA with labels that no step has used; not needed where the policy tests no answers.
        policy: a YAML file, or what is in one; :func:`default_policy` by default.
        on: targets that the candidate runs on; those that the policy has limits for, or else ``cpu``, by default.
        group: the column of DATA whose rows of one value are not independent of each other, such as one patient's.
        on_progress: told what is being done.

    Raises:
        InputError: a model, the rows or the policy cannot be used; rows that a model has seen; or the policy asks for
            something that cannot be had here, such as a latency of an emulator.
        MonographError: a model cannot be run, or answers with something that is not finite.
    """
    own, other = (onnx_file_of(str(model)) for model in (candidate, reference))
    limits = policy if isinstance(policy, Policy) else load_policy(Path(policy)) if policy else default_policy(own.contract.kind)
    targets = gate_targets(on, limits)
    spec = as_data_spec(data)
    check_possible(limits, own, other, targets, has_data=spec is not None)
    with ExitStack() as opened:
        bench = Bench(
            candidate=Model(own, _open(spec, own, limits, group, opened)),
            reference=Model(other, _open(spec, other, limits, group, opened)),
            policy=limits,
            on_progress=on_progress,
        )
        streams = [model.rows for model in (bench.candidate, bench.reference) if model.rows is not None]
        on_progress("looking for rows that were seen before")
        notes = refuse_seen_rows((own, other), streams) if streams else ()
        checks, beside, measurements = _run_and_check(bench, targets)
        if not checks:
            raise ConfigError(
                f"the policy tests nothing on {', '.join(target.name for target in targets)}: nothing may pass untested"
            )
        told = (note for one in measurements for note in (*one.assumed, *one.warnings))
        return Verdict(
            outcome=conclude(check.outcome for check in checks),
            candidate=_subject(own),
            reference=_subject(other),
            data=None if spec is None else spec.source,
            row_count=streams[0].row_count if streams else None,
            rows_sha256=_rows_sha256(streams[0]) if streams else None,
            evidence={one.target: one.evidence.value for one in measurements},
            policy=limits.model_dump(mode="json"),
            policy_sha256=limits.sha256(),
            is_default_policy=policy is None,
            checks=tuple(checks),
            beside=tuple(beside),
            notes=tuple(dict.fromkeys((*notes, *_untested(limits, targets), *told))),
            measurements=tuple(measurements),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            monograph=monograph.__version__,
        )


def _open(spec: DataSpec | None, file: OnnxFile, policy: Policy, group: str | None, opened: ExitStack) -> RowStream | None:
    if spec is None:
        return None
    columns = policy.parts.columns if policy.parts is not None else ()
    stream = opened.enter_context(spec.open(file.contract, file.tokenizer_json, slices=columns, group=group))
    if stream.labels is None and (policy.asks_classes or policy.error is not None):
        raise ConfigError(
            f"{stream.table.origin} has no labels, and the policy tests how right answers are: name the label column"
        )
    return stream


def _run_and_check(bench: Bench, targets: Sequence[Target]) -> tuple[list[Check], list[Beside], list[Measurement]]:
    checks: list[Check] = []
    beside: list[Beside] = []
    measurements = []
    if bench.policy.size is not None:
        checks += size_checks(bench.candidate.file, bench.reference.file, bench.policy.size)
    for target in targets:
        measured, outputs = bench.measure(target)
        require_latency(bench.policy, target.name, measured.evidence)
        if outputs is not None and bench.policy.asks_outputs:
            outputs = finite_outputs(outputs, "the candidate")
            checks += _number_checks(bench, target.name, outputs)
            if bench.policy.asks_classes:
                pair = _pair(bench, target.name, outputs, bench.expected())
                checks += _classifier_checks(bench, target, pair)
                beside.append(_beside(pair))
        checks += _cost_checks(bench, target, measured)
        measurements.append(measured)
    return checks, beside, measurements


def _number_checks(bench: Bench, target: str, outputs: Array) -> Iterator[Check]:
    """Check the outputs themselves: beside the reference's, or beside targets that are numbers."""
    policy, rows = bench.policy, bench.candidate.labelled_rows
    if policy.parity is not None:
        numbering = class_numbering(bench.candidate.contract, bench.reference.contract)
        ordered = outputs if numbering is None else outputs[..., np.argsort(numbering)]
        yield parity_check(ordered, bench.expected(), policy.parity, target)
    if policy.error is not None:
        yield error_check(
            outputs, bench.expected(), np.asarray(rows.labels), policy.error, target, groups=rows.groups, seed=policy.seed
        )


def _pair(bench: Bench, target: str, outputs: Array, expected: Array) -> Pair:
    own, other = bench.candidate, bench.reference
    numbering = class_numbering(own.contract, other.contract)
    check_alike(own.labelled_rows, other.labelled_rows, numbering)
    return Pair(
        candidate=classifier_answers(outputs, own.labelled_rows, own.contract, numbering),
        reference=classifier_answers(expected, other.labelled_rows, other.contract),
        target=target,
        groups=other.labelled_rows.groups,
        seed=bench.policy.seed,
    )


def _classifier_checks(bench: Bench, target: Target, pair: Pair) -> Iterator[Check]:
    policy = bench.policy
    if policy.accuracy is not None:
        yield accuracy_check(pair, policy.accuracy)
    if policy.flips is not None:
        yield from flip_checks(pair, policy.flips)
    if policy.parts is not None:
        yield from part_checks(pair, policy.parts, bench.reference.labelled_rows.slices)
    if policy.calibration is not None:
        yield from calibration_checks(pair, policy.calibration)
    if policy.robustness is not None:
        names = policy.robustness.corruptions or fitting_corruptions(bench.candidate.labelled_rows)
        pairs = {name: _pair(bench, target.name, bench.answer(target, name), bench.expected(name)) for name in names}
        yield from loss_family("robustness.max_loss_points", pairs, policy.robustness.max_loss_points).values()


def _cost_checks(bench: Bench, target: Target, measured: Measurement) -> Iterator[Check]:
    limits = bench.policy.targets.get(target.name)
    if limits is None:
        return
    yield from placement_checks(measured, target.provider, limits)
    yield from latency_checks(measured.latency, limits, target.name)
    if limits.first_run_ms is not None or limits.load_ms is not None or limits.peak_memory_mb is not None:
        yield from start_checks(bench.start_often(target), limits, target.name)
    if limits.p50_ratio is not None:
        yield ratio_check(bench.time_in_turns(target), "candidate", "reference", limits.p50_ratio, target.name)


def _beside(pair: Pair) -> Beside:
    flips = pair.flips
    own, other = (proportion_interval(int(one.is_right.sum()), len(pair)) for one in (pair.candidate, pair.reference))
    return Beside(pair.target, own, other, flips.lost, flips.gained, mcnemar_p(flips.lost, flips.gained))


def _subject(file: OnnxFile) -> Subject:
    return Subject(str(file.path), file.sha256, file.size_bytes, read_seen(file).uses)


def _rows_sha256(rows: RowStream) -> str:
    digest = hashlib.sha256(rows.digests().tobytes())
    if rows.labels is not None:
        digest.update(np.ascontiguousarray(rows.labels).tobytes())
    return digest.hexdigest()


def _untested(policy: Policy, targets: Sequence[Target]) -> Iterator[str]:
    names = {target.name for target in targets}
    for name in policy.targets:
        if name not in names:
            yield f"the policy's limits for {name} were not tested: give --on {name}"
    for target in targets:
        if target.evidence_here is Evidence.PREDICTED and policy.asks_outputs:
            yield f"{target.name}: predicted, nothing ran: answers were tested on other targets only"
