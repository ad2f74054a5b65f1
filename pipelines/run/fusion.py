"""The step that makes one graph of the members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from monograph.errors import ConfigError
from monograph.export.parity import ParityProof
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import NOTHING_SEEN, seen, seen_by
from monograph.pipelines.records import write_record
from monograph.pipelines.run.step import VALIDATION, Run

FUSED, RECORD = "fused.onnx", "fused.json"


@dataclass(frozen=True)
class FusedRecord:
    """What the step ``fuse`` found out, beside the file itself."""

    form: str
    formula: str
    weights: dict[str, float]
    fit_note: str | None
    notes: tuple[str, ...]
    node_count: int
    proof: ParityProof


def fuse_members(run: Run, exported: Mapping[str, Path], data: Mapping[str, Path]) -> Path:
    """Fuse the members' files; weights are fitted on the validation rows."""
    choice = run.config.fuse
    parameters = {
        "fuse": choice.model_dump(),
        "members": [path.name for path in exported.values()],
        "data": [path.name for path in data.values()],
    }

    def work(folder: Path) -> None:
        from monograph.export.fusion import fit_fusion, fuse, plan_fusion
        from monograph.export.fusion.forms import FORMS

        files = [read_onnx(path / f"{name}.onnx") for name, path in exported.items()]
        rows = [Rows.load(data[name] / VALIDATION) for name in exported]
        fit = None
        if choice.weights == "fit":
            fit = fit_fusion(files, rows, choice.combine, temperature=choice.calibrate, search=choice.search)
        weights = _given_weights(choice.weights, list(exported))
        plan = plan_fusion(files, names=list(exported), weights=weights, combine=choice.combine, fit=fit, share=choice.share)
        _check_takes_the_members_rows(plan.contract, files[0].contract)
        known = seen_by(files) | (seen("fit", rows[0]) if fit else NOTHING_SEEN)
        fused = fuse(plan, folder / FUSED, rows=rows[0], seen=known)
        record = FusedRecord(
            form=plan.form,
            formula=FORMS[plan.form].formula,
            weights={member.name: member.weight for member in plan.members},
            fit_note=fit.describe() if fit else None,
            notes=plan.notes,
            node_count=fused.node_count,
            proof=fused.proof,
        )
        write_record(folder / RECORD, record)
        run.tell(", ".join(f"{member.weight:.2f} {member.name}" for member in plan.members))

    return run.workspace.step("fuse", parameters, work)


def _check_takes_the_members_rows(fused: Contract, first: Contract) -> None:
    """The rows of a pipeline are prepared once; a fused graph that takes raw pixels instead would misread them."""
    if [(spec.name, spec.preprocessing) for spec in fused.inputs] != [(spec.name, spec.preprocessing) for spec in first.inputs]:
        raise ConfigError(
            "the models of a pipeline must prepare their inputs alike, for they share its rows: give them one preprocessing, "
            "or fuse the exported files by `monograph fuse`, which adapts them"
        )


def _given_weights(weights: str | dict[str, float], names: list[str]) -> list[float] | None:
    if not isinstance(weights, dict):
        return None
    if set(weights) != set(names):
        raise ConfigError(f"fuse.weights names {sorted(weights)}, the models are {sorted(names)}: give one weight a model")
    return [weights[name] for name in names]
