"""One model to what a target takes: converted, proven against the original, and only then written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from monograph.errors import ConfigError, ExportError
from monograph.export.golden import golden_json
from monograph.export.lowering.agreement import Agreement, AgreementBound, prove_agreement
from monograph.export.lowering.choose_weights import WeightChoice, choose_weights, convert_with
from monograph.export.lowering.lowering import LOWERING_KEY, QUANTISED_TOLERANCE, Lowered, Lowering, LoweringJob
from monograph.export.lowering.plan import MixedPrecisionPlan
from monograph.export.lowering.promise import Promise
from monograph.export.lowering.quantise import QUANTISING
from monograph.export.lowering.static import STATIC_BATCH, fix_contract
from monograph.export.lowering.weight_forms import ANY, forms_for
from monograph.export.parity import BATCH_SIZES, ParityProof, draw_batches, open_when_run
from monograph.export.trace import PROOF_KEY, write_proven
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.inference import infer_contract
from monograph.models.onnx_file import OnnxFile, load_graph, read_onnx, write_onnx
from monograph.models.seen import SEEN_KEY, SeenRows, read_seen, seen, seen_metadata
from monograph.runtime.coverage import INSTRUCTION_SETS_KEY, instruction_sets_json
from monograph.runtime.environment import installed_versions
from monograph.runtime.golden import GOLDEN_KEY, GoldenBatch
from monograph.runtime.on_target import SentSession
from monograph.runtime.session import open_session
from monograph.runtime.session_spec import EXACT_PRODUCTS
from monograph.runtime.targets import find_target

Array = npt.NDArray[Any]
_RANDOM_ROWS = 32
_RANDOM_ROWS_SEED = 3
_OF_THE_SOURCE = (CONTRACT_KEY, TOKENIZER_KEY, PROOF_KEY, GOLDEN_KEY, SEEN_KEY)
"""What the source's file says of itself does not hold for the lowered one, or is written anew."""


@dataclass(frozen=True)
class Mixed:
    """A plan that leaves layers in float, and the promise that what comes of it has to keep."""

    plan: MixedPrecisionPlan
    searched: Rows
    """Rows that the plan was found on."""
    promise: Callable[[Array, Array], Promise]
    """Judges the outputs of source and lowered model for the rows of the proof; raises where they lose too much."""


def lower(
    lowering: Lowering,
    source: OnnxFile,
    path: Path,
    *,
    calibration: Rows | None = None,
    rows: Rows | None = None,
    batch_size: int = 1,
    sizes: Mapping[str, int] | None = None,
    bound: AgreementBound | None = None,
    is_enforced: bool = True,
    options: Mapping[str, str] | None = None,
    processors: str = ANY,
    mixed: Mixed | None = None,
) -> Lowered:
    """Convert ``source``, prove the written file against it, and only then give it the name ``path``.

    Args:
        lowering: what to do.
        source: the float model.
        path: the file to write.
        calibration: rows as :func:`lowered_contract` takes them, to calibrate activations on; random ones if there are none.
        rows: to prove on, held out from ``calibration``; without any, those of ``calibration`` again.
        batch_size: where the lowering fixes sizes.
        sizes: of the other named dimensions.
        bound: what a quantised model has to reach.
        is_enforced: refuse a quantised model that too often chooses another class, instead of warning of it.
        options: of the execution provider that a lowering compiles for.
        processors: where 8-bit weights have to be exact: ``any``, or ``vnni`` or ``arm64`` alone, which take their full range.
        mixed: which layers stay in float, and what the written file has to prove on ``rows``.

    Raises:
        ConfigError: a size is missing, ``processors`` are not known, ``source`` was quantised already, or the target that is
            compiled for is not here.
        ExportError: the model cannot be converted.
        ParityError: the lowered model does not compute what its source does; nothing is written.
    """
    if lowering.first is not None and LOWERING_KEY not in source.metadata:
        return _lower_in_turn(
            lowering, source, path, options=options, calibration=calibration, rows=rows, batch_size=batch_size, sizes=sizes,
            bound=bound, is_enforced=is_enforced, processors=processors,
        )  # fmt: skip
    _check_processors(lowering, processors)
    if options and lowering.target is None:
        raise ConfigError(f"{lowering.name} compiles for no execution provider, so it takes no --provider-option")
    if lowering.is_quantised and is_quantised(source):
        raise ConfigError(f"{source.path} is quantised already, and {lowering.name} takes a float model: give the original")
    contract = lowered_contract(lowering, source.contract, batch_size, sizes)
    warnings = []
    if lowering.is_calibrated and calibration is None:
        warnings.append(
            f"{source.path.name} was calibrated on {_RANDOM_ROWS} random rows, which say nothing of the real range of its "
            "activations: its accuracy would be better with --calibration DATA"
        )
    calibrated_on = calibration or _random_rows(contract)
    with tempfile.TemporaryDirectory(prefix="monograph-lowering-") as name:
        job = LoweringJob(
            source,
            contract,
            calibrated_on,
            Path(name),
            options or {},
            keep_float=mixed.plan.keep_float if mixed else frozenset(),
        )
        converted, choice = _converted(lowering, job, processors, is_mixed=mixed is not None)
        graph = load_graph(converted)
        contract = _with_known_outputs(contract, onnx.load(converted, load_external_data=False))
        graph.metadata_props.clear()  # the converter's own
        graph.graph.sort()  # converters append nodes where they please
        kept = {key: text for key, text in source.metadata.items() if key not in _OF_THE_SOURCE}
        searched = None if mixed is None else mixed.searched
        kept |= seen_metadata(_seen(lowering, source, calibration, rows) | seen("search of precision", searched), path)
        record = _record(lowering, source, contract, calibrated_on if lowering.is_calibrated else None, options or {})
        if choice is not None:
            record["settings"] |= choice.record()
        if lowering.is_quantised:
            kept[INSTRUCTION_SETS_KEY] = instruction_sets_json(graph)
        new = _New(lowering, graph, source, path, contract, kept, record, options or {}, mixed)
        promise: Promise | None = None
        if lowering.is_quantised:
            agreement, promise = _write_agreeing(new, calibration, rows, calibrated_on, bound or AgreementBound(), is_enforced)
            warnings += [f"{source.path.name} as {lowering.name}: {doubt}" for doubt in agreement.doubts()]
            proof: ParityProof | Agreement = agreement
        else:
            proof = _write_equal(new, rows or calibration)
    notes = [f"{source.path.name} was lowered by {lowering.name} ({_sizes(contract)}): {proof.describe()}"]
    if choice is not None:
        notes.append(f"weights: {choice.form.title}, {choice.reason}")
    if promise is not None:
        notes.append(promise.describe())
    plan = None if mixed is None else mixed.plan
    return Lowered(path, lowering.name, contract, proof, tuple(notes), tuple(warnings), plan, promise)


def _check_processors(lowering: Lowering, processors: str) -> None:
    forms_for(processors)
    if processors != ANY and not lowering.chooses_weights:
        raise ConfigError(f"{lowering.name} writes no 8-bit weights for processors: leave --for {processors} out")


def _converted(lowering: Lowering, job: LoweringJob, processors: str, *, is_mixed: bool) -> tuple[Path, WeightChoice | None]:
    """Write the lowered graph, with the weights that suit it where the lowering leaves a choice; return the file.

    Which layers stay in float was chosen with weights of all bits, which therefore stay.
    """
    if not lowering.chooses_weights:
        return lowering.convert(job), None
    forms = forms_for(processors)
    source = (job.source.path, job.source.contract)
    write = partial(convert_with, lowering, job)
    return choose_weights(write, forms[:1] if is_mixed else forms, source, job.contract, job.rows, processors)


def _lower_in_turn(
    lowering: Lowering, source: OnnxFile, path: Path, *, options: Mapping[str, str] | None, rows: Rows | None, **choices: Any
) -> Lowered:
    """Lower a float model by what has to come first, and that by ``lowering``; only the last file stays."""
    assert lowering.first is not None
    first = STATIC_BATCH if is_quantised(source) else lowering.first
    with tempfile.TemporaryDirectory(prefix="monograph-lowering-") as name:
        between = lower(first, source, Path(name) / source.path.name, rows=rows, **choices)
        made = lower(lowering, read_onnx(between.path), path, options=options, rows=rows or choices["calibration"])
    return replace(made, notes=(*between.notes, *made.notes), warnings=(*between.warnings, *made.warnings))


def _seen(lowering: Lowering, source: OnnxFile, calibration: Rows | None, rows: Rows | None) -> SeenRows:
    """Return what the source has seen, with the rows that ranges were taken from and those that decided that it is written."""
    before = read_seen(source)
    if not lowering.is_quantised:
        return before
    calibrated = seen("calibration", calibration) if lowering.is_calibrated else SeenRows()
    return before | calibrated | seen("proof of agreement", rows or calibration)


def lowered_contract(
    lowering: Lowering, contract: Contract, batch_size: int = 1, sizes: Mapping[str, int] | None = None
) -> Contract:
    """Return what the lowered model will promise, which is what rows for it are read by.

    Raises:
        ConfigError: a named size of an input is not given.
    """
    return fix_contract(contract, batch_size, sizes) if lowering.fixes_sizes else contract


def is_quantised(source: OnnxFile) -> bool:
    """Say whether something in the graph is quantised already."""
    return any(node.op_type in QUANTISING for node in load_graph(source.path).graph.all_nodes())


@dataclass(frozen=True)
class _New:
    """What is to be written."""

    lowering: Lowering
    graph: ir.Model
    source: OnnxFile
    path: Path
    contract: Contract
    kept: Mapping[str, str]
    record: Mapping[str, Any]
    options: Mapping[str, str]
    mixed: Mixed | None


def _write_equal(new: _New, real_rows: Rows | None) -> ParityProof:
    """Write what has to compute what its source does, on the processor or on the target that it is for."""
    target = None if new.lowering.target is None else find_target(new.lowering.target).with_options(new.options)
    assert new.lowering.tolerance is not None
    return write_proven(
        new.graph,
        new.path,
        new.contract,
        open_when_run(new.source.path) if target is None else SentSession(new.source.path, new.contract, target),
        candidate=open_when_run if target is None else partial(SentSession, contract=new.contract, target=target),
        names=(new.source.path.name, new.path.name),
        rows=real_rows,
        tolerance=new.lowering.tolerance,
        tokenizer_json=new.source.tokenizer_json,
        metadata={**new.kept, LOWERING_KEY: json.dumps(new.record)},
    )


def _write_agreeing(
    new: _New, calibration: Rows | None, held_out: Rows | None, calibrated_on: Rows, bound: AgreementBound, is_enforced: bool
) -> tuple[Agreement, Promise | None]:
    """Write what gives other numbers on purpose, with golden batches of its own."""
    agreements: list[Agreement] = []
    promises: list[Promise] = []
    real_rows = held_out or calibration

    def judge(expected: Array, got: Array) -> None:
        if new.mixed is not None:
            promises.append(new.mixed.promise(expected, got))

    def prove(staged: Path) -> dict[str, str]:
        agreements.append(
            prove_agreement(
                (new.source.path, new.source.contract),
                (staged, new.contract),
                real_rows or calibrated_on,
                is_random=real_rows is None,
                is_held_out=held_out is not None or not new.lowering.is_calibrated,
                bound=bound,
                is_enforced=is_enforced,
                on_outputs=judge,
            )
        )
        record = {**new.record, "agreement": asdict(agreements[0])}
        if new.mixed is not None:
            record |= {"plan": asdict(new.mixed.plan), "promise": asdict(promises[0])}
        return {LOWERING_KEY: json.dumps(record), GOLDEN_KEY: _own_golden(staged, new.contract, real_rows)}

    try:
        tokenizer = {} if new.source.tokenizer_json is None else {TOKENIZER_KEY: new.source.tokenizer_json}
        write_onnx(new.graph, new.path, {**new.kept, **tokenizer, CONTRACT_KEY: new.contract.to_json()}, prove)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{new.path.name} would not be a valid ONNX model: {reason}; nothing was written") from error
    return agreements[0], promises[0] if promises else None


def _own_golden(staged: Path, contract: Contract, rows: Rows | None) -> str:
    """Return golden batches of a quantised model: what it gives with exact products, for `monograph verify` elsewhere."""
    session = open_session(staged, spec=EXACT_PRODUCTS)

    def answered(batch: GoldenBatch) -> GoldenBatch:
        return replace(batch, expected=session(batch.inputs))

    return golden_json(
        [answered(batch) for batch in draw_batches(contract, rows, BATCH_SIZES)],
        contract,
        staged,
        reference=f"{staged.name} on cpu",
        tolerance=QUANTISED_TOLERANCE,
        prove_again=answered,
    )


def _random_rows(contract: Contract) -> Rows:
    """Draw rows one by one: a contract with a fixed batch gives as many at a time."""
    rng = np.random.default_rng(_RANDOM_ROWS_SEED)
    drawn: list[dict[str, Any]] = []
    while sum(len(next(iter(batch.values()))) for batch in drawn) < _RANDOM_ROWS:
        drawn.append(random_inputs(contract, 1, rng))
    return Rows({name: np.concatenate([batch[name] for batch in drawn]) for name in drawn[0]}, origin="random rows")


def _with_known_outputs(contract: Contract, proto: onnx.ModelProto) -> Contract:
    """Fix the output sizes that follow from those of the inputs."""
    found = {spec.name: spec.shape for spec in infer_contract(proto, "").outputs}
    outputs = []
    for spec in contract.outputs:
        shape = found.get(spec.name, ())
        known = len(shape) == len(spec.shape)
        sizes = [b if isinstance(a, str) and isinstance(b, int) else a for a, b in zip(spec.shape, shape, strict=False)]
        outputs.append(replace(spec, shape=tuple(sizes)) if known else spec)
    return replace(contract, outputs=tuple(outputs))


def _record(
    lowering: Lowering, source: OnnxFile, contract: Contract, calibration: Rows | None, options: Mapping[str, str]
) -> dict[str, Any]:
    before = {"before": json.loads(source.metadata[LOWERING_KEY])} if LOWERING_KEY in source.metadata else {}
    return {
        "version": 1,
        **before,
        "provider_options": dict(options),
        "lowering": lowering.name,
        "settings": dict(lowering.settings),
        "source": source.path.name,
        "source_sha256": source.sha256,
        "inputs": [spec.describe() for spec in contract.inputs],
        "calibration": None
        if calibration is None
        else {"origin": calibration.origin, "row_count": len(calibration), "sha256": calibration.sha256()},
        "packages": dict(installed_versions()),
    }


def _sizes(contract: Contract) -> str:
    return ", ".join(spec.describe() for spec in contract.inputs)
