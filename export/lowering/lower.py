"""One model to what a target takes: converted, proven against the original, and only then written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from monograph.errors import ConfigError, ExportError
from monograph.export.lowering.agreement import Agreement, AgreementBound, prove_agreement
from monograph.export.lowering.lowering import LOWERING_KEY, Lowered, Lowering, LoweringJob
from monograph.export.lowering.static import fix_contract
from monograph.export.parity import ParityProof, open_when_run
from monograph.export.trace import PROOF_KEY, write_proven
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.inference import infer_contract
from monograph.models.onnx_file import OnnxFile, load_graph, write_onnx
from monograph.runtime.environment import installed_versions
from monograph.runtime.golden import GOLDEN_KEY

_RANDOM_ROWS = 32
_RANDOM_ROWS_SEED = 3
_OF_THE_SOURCE = (CONTRACT_KEY, TOKENIZER_KEY, PROOF_KEY, GOLDEN_KEY)
"""What the source's file says of itself does not hold for the lowered one, or is written anew."""


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
) -> Lowered:
    """Convert ``source``, prove the written file against it, and only then give it the name ``path``.

    Args:
        lowering: what to do.
        source: the float model.
        path: the file to write.
        calibration: rows as :func:`lowered_contract` takes them, to calibrate activations on; random ones if there are none.
        rows: to prove on; those of ``calibration`` by default.
        batch_size: where the lowering fixes sizes.
        sizes: of the other named dimensions.
        bound: what a quantised model has to reach.

    Raises:
        ConfigError: a size is missing, or ``source`` was quantised already.
        ExportError: the model cannot be converted.
        ParityError: the lowered model does not compute what its source does; nothing is written.
    """
    if lowering.is_quantised and is_quantised(source):
        raise ConfigError(f"{source.path} is quantised already, and {lowering.name} takes a float model: give the original")
    contract = lowered_contract(lowering, source.contract, batch_size, sizes)
    warnings = []
    if lowering.is_quantised and calibration is None:
        warnings.append(
            f"{source.path.name} was calibrated on {_RANDOM_ROWS} random rows, which say nothing of the real range of its "
            "activations: its accuracy would be better with --calibration DATA"
        )
    calibrated_on = calibration or _random_rows(contract)
    with tempfile.TemporaryDirectory(prefix="monograph-lowering-") as name:
        job = LoweringJob(source, contract, calibrated_on, Path(name))
        converted = lowering.convert(job)
        graph = load_graph(converted)
        contract = _with_known_outputs(contract, onnx.load(converted, load_external_data=False))
        graph.metadata_props.clear()  # the converter's own
        graph.graph.sort()  # converters append nodes where they please
        kept = {key: text for key, text in source.metadata.items() if key not in _OF_THE_SOURCE}
        record = _record(lowering, source, contract, calibrated_on if lowering.is_quantised else None)
        proof = _write(lowering, graph, source, path, contract, kept, record, rows or calibration, calibrated_on, bound)
    notes = (f"{source.path.name} was lowered by {lowering.name} ({_sizes(contract)}): {proof.describe()}",)
    return Lowered(path, lowering.name, contract, proof, notes, tuple(warnings))


def lowered_contract(
    lowering: Lowering, contract: Contract, batch_size: int = 1, sizes: Mapping[str, int] | None = None
) -> Contract:
    """Return what the lowered model will promise, which is what rows for it are read by.

    Raises:
        ConfigError: a named size of an input is not given.
    """
    return fix_contract(contract, batch_size, sizes) if lowering.fixes_sizes else contract


def is_quantised(source: OnnxFile) -> bool:
    """Say whether the graph holds a QuantizeLinear already."""
    return any(node.op_type == "QuantizeLinear" for node in load_graph(source.path).graph.all_nodes())


def _write(
    lowering: Lowering,
    graph: ir.Model,
    source: OnnxFile,
    path: Path,
    contract: Contract,
    kept: Mapping[str, str],
    record: Mapping[str, Any],
    real_rows: Rows | None,
    calibrated_on: Rows,
    bound: AgreementBound | None,
) -> ParityProof | Agreement:
    if lowering.tolerance is not None:
        names = (source.path.name, path.name)
        return write_proven(
            graph,
            path,
            contract,
            open_when_run(source.path),
            names=names,
            rows=real_rows,
            tolerance=lowering.tolerance,
            tokenizer_json=source.tokenizer_json,
            metadata={**kept, LOWERING_KEY: json.dumps(record)},
        )
    agreements: list[Agreement] = []

    def prove(staged: Path) -> dict[str, str]:
        agreements.append(
            prove_agreement(
                (source.path, source.contract),
                (staged, contract),
                real_rows or calibrated_on,
                is_random=real_rows is None,
                bound=bound or AgreementBound(),
            )
        )
        return {LOWERING_KEY: json.dumps({**record, "agreement": asdict(agreements[0])})}

    try:
        tokenizer = {} if source.tokenizer_json is None else {TOKENIZER_KEY: source.tokenizer_json}
        write_onnx(graph, path, {**kept, **tokenizer, CONTRACT_KEY: contract.to_json()}, prove)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{path.name} would not be a valid ONNX model: {reason}; nothing was written") from error
    return agreements[0]


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


def _record(lowering: Lowering, source: OnnxFile, contract: Contract, calibration: Rows | None) -> dict[str, Any]:
    return {
        "version": 1,
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
