"""A cascade as one file a stage, with a plan that drives them: for targets that know no If, where the worst case is too dear.

See :mod:`monograph.runtime.staged`, which reads the plan and runs it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from monograph.errors import ConfigError, FusionError
from monograph.export.lowering.branch_free import remove_branches
from monograph.export.lowering.lowering import LOWERING_KEY, Lowered
from monograph.export.parity import BATCH_SIZES, TOLERANCE, ParityProof, draw_batches, open_when_run, prove_batches
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.files import publish, staging_folder
from monograph.models.onnx_file import OnnxFile, load_graph, write_onnx
from monograph.models.seen import read_seen, seen_metadata
from monograph.runtime.environment import installed_versions
from monograph.runtime.golden import read_golden
from monograph.runtime.staged import PLAN_FILE, Stage, StagedPlan, is_staged, open_staged

SESSIONS = "sessions"
_HARD = "hard"


def split_cascade(source: OnnxFile, folder: Path, *, rows: Rows | None = None) -> Lowered:
    """Write one file a stage and their plan into ``folder``, proven equal to the cascade; only then the folder gets its name.

    The proof's rows are those that the cascade itself was proven on, easy, hard and mixed, and ``rows`` where there are any.

    Raises:
        ConfigError: ``folder`` is there already, and is no cascade in stages.
        FusionError: ``source`` is no cascade.
        ParityError: the stages do not compute what the cascade does; nothing is written.
    """
    folder = folder.absolute()
    if folder.exists() and not is_staged(folder):
        raise ConfigError(f"{folder} is there already and is no cascade in stages: give a new folder")
    with staging_folder(folder.parent) as staging:
        staged = staging / folder.name
        plan = _write_stages(source, staged)
        proof = _prove(source, staged, plan, rows, folder.name)
        if folder.exists():
            folder.replace(staging / "before")
        publish(staged, folder)
    notes = (f"{source.path.name} was cut into {len(plan.stages)} stages: {proof.describe()}",)
    return Lowered(folder, SESSIONS, plan.contract, proof, notes, ())


def _write_stages(source: OnnxFile, folder: Path) -> StagedPlan:
    flat = load_graph(source.path)
    boundaries = remove_branches(flat, source.path.name)
    ShapeInferencePass()(flat)
    carried = dict.fromkeys(value for boundary in boundaries for value in boundary.carried)
    made_by: dict[ir.Value, int] = {}
    stages = []
    for index in range(len(boundaries) + 1):
        is_last = index == len(boundaries)
        known = [*flat.graph.inputs, *made_by]
        ends = [boundaries[-1].later] if is_last else [boundaries[index].answer, boundaries[index].hard]
        own = [] if is_last else [value for value in carried if value not in made_by and value in boundaries[index].carried]
        made_by |= dict.fromkeys(own, index)
        stages.append(_write_stage(source, flat, known, ends, own, folder, index))
    plan = StagedPlan(source.contract, tuple(stages))
    (folder / PLAN_FILE).write_text(plan.to_json(), encoding="utf-8")
    return plan


def _write_stage(
    source: OnnxFile,
    flat: ir.Model,
    known: list[ir.Value],
    ends: list[ir.Value],
    carried: list[ir.Value],
    folder: Path,
    index: int,
) -> Stage:
    """Cut out what computes ``ends`` and ``carried`` from ``known``, as a model of its own."""
    graph = ir.convenience.extract(flat.graph, known, [*ends, *carried])
    for value in [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]:
        graph.inputs.remove(value)
    answer, *others = graph.outputs
    answer.name = source.contract.output.name
    names = {spec.name: spec for spec in source.contract.inputs}
    if others and len(ends) > 1:
        others[0].name = _HARD
    model = ir.Model(graph, ir_version=flat.ir_version, producer_name="monograph", functions=list(flat.functions.values()))
    graph.opset_imports.update(flat.graph.opset_imports)
    contract = Contract(
        tuple(names.get(value.name or "") or _spec(value) for value in graph.inputs),
        (replace(source.contract.output, name=answer.name), *map(_spec, others)),
        source.contract.kind,
        source.contract.class_names,
    )
    record = {
        "version": 1,
        "lowering": SESSIONS,
        "stage": index + 1,
        "source": source.path.name,
        "source_sha256": source.sha256,
        "packages": dict(installed_versions()),
    }
    metadata = {CONTRACT_KEY: contract.to_json(), LOWERING_KEY: json.dumps(record)}
    if source.tokenizer_json is not None:
        metadata[TOKENIZER_KEY] = source.tokenizer_json
    file = f"stage-{index + 1}.onnx"
    metadata |= seen_metadata(read_seen(source), folder / file)
    write_onnx(model, folder / file, metadata, lambda staged: {})
    return Stage(
        file,
        tuple(value.name or "" for value in graph.inputs),
        answer.name,
        _HARD if len(ends) > 1 else None,
        tuple(value.name or "" for value in others[len(ends) - 1 :]),
    )


def _spec(value: ir.Value) -> TensorSpec:
    if value.name is None or value.dtype is None:
        raise FusionError(f"the type of {value.name!r}, which one stage hands to the next, is not known: fuse with --no-share")
    shape = ("batch", *(dim if isinstance(dim, int) else str(dim) for dim in tuple(value.shape or ())[1:]))
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(value.dtype.value).name, shape)


def _prove(source: OnnxFile, staged: Path, plan: StagedPlan, rows: Rows | None, name: str) -> ParityProof:
    golden = read_golden(source.metadata, source.path.name)
    batches = list(golden.batches) if golden else []
    if rows is not None or not batches:
        batches += draw_batches(plan.contract, rows, BATCH_SIZES)
    names, tolerance = (source.path.name, name), golden.tolerance if golden else TOLERANCE
    proven = prove_batches(
        open_when_run(source.path), open_staged(staged), batches, plan.contract, names=names, tolerance=tolerance
    )
    return ParityProof(*names, tolerance, 0, tuple(comparison for compared, _ in proven for comparison in compared))
