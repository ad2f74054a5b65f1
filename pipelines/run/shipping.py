"""The last steps before the report: may the student take the fused graph's place, and the folder that ships where it may."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monograph.errors import ConfigError
from monograph.pipelines.config import PipelineConfig
from monograph.pipelines.gate.policy import Policy, load_policy, read_policy
from monograph.pipelines.gate.verdict import Verdict
from monograph.pipelines.records import read_record, write_record
from monograph.pipelines.run.fusion import FUSED
from monograph.pipelines.run.measuring import LOWERED, MEASUREMENT
from monograph.pipelines.run.step import TEST, Run
from monograph.runtime.results import Measurement

VERDICT, VERDICT_PAGE = "verdict.json", "verdict.html"
BUNDLE, BUNDLED = "bundle", "bundle.json"


def check_shipping(config: PipelineConfig) -> None:
    """Refuse before hours of training, not after, what the steps would refuse.

    Raises:
        ConfigError: the student cannot be judged or bundled as it is asked for.
    """
    from monograph.runtime.targets import find_target

    for name in config.gate.targets if config.gate else ():
        find_target(name).require_here()
    is_8_bit = config.distill is not None and config.distill.quantize is not None
    for name in config.bundle.targets if config.bundle else ():
        if find_target(name).lowering is not None and is_8_bit:
            raise ConfigError(
                f"bundle.targets names {name}, whose own form is made of the float student, and the candidate is the one in 8 "
                "bits: leave that target out, or distill.quantize"
            )


def judge_student(run: Run, candidate: Path, fused: Path, data: Path) -> Path:
    """Judge whether the student may take the fused graph's place; a verdict that blocks stops no run."""
    choice = run.config.gate
    assert choice is not None
    policy = _policy(choice.policy)
    parameters = {
        "candidate": [candidate.parent.name, candidate.name],
        "reference": fused.name,
        "data": data.name,
        "policy": None if policy is None else policy.model_dump(mode="json"),
        "targets": choice.targets,
        "group": run.config.data.group,
    }

    def work(folder: Path) -> None:
        from monograph.pipelines.data import DataSpec
        from monograph.pipelines.gate import gate_model
        from monograph.pipelines.report.gate import write_gate_page

        group = run.config.data.group
        # A column that groups the rows is left out of the inputs, unless it is named for one.
        rows = DataSpec(str(data / TEST), None if group is None else {group: group})
        verdict = gate_model(
            candidate,
            fused / FUSED,
            rows,
            policy=policy,
            on=choice.targets,
            group=group,
            on_progress=lambda what: run.workspace.progress.update(0, 1, what),
        )
        write_record(folder / VERDICT, verdict)
        write_gate_page(verdict, folder / VERDICT_PAGE)
        run.tell(verdict.describe())

    return run.workspace.step("gate", parameters, work)


def _policy(given: Mapping[str, object] | Path | None) -> Policy | None:
    if given is None:
        return None
    return load_policy(given) if isinstance(given, Path) else read_policy(given, "gate.policy")


def read_verdict(folder: Path) -> Verdict:
    """Return what the gate found."""
    return read_record(folder / VERDICT, Verdict)


def bundle_student(run: Run, candidate: Path, verdict: Path, measured: Mapping[str, Path]) -> Path:
    """Write the folder that ships; ``measured`` are the folders of all measurements by ``name@target``."""
    choice = run.config.bundle
    assert choice is not None
    own = {target: measured.get(f"{candidate.stem}@{target}") for target in choice.targets}
    found = {target: folder for target, folder in own.items() if folder is not None}
    parameters = {
        "candidate": [candidate.parent.name, candidate.name],
        "verdict": verdict.name,
        "measured": {target: folder.name for target, folder in found.items()},
        "licence": choice.licence,
    }

    def work(folder: Path) -> None:
        from monograph.pipelines.bundle import bundle_model

        lowered, measurements = [], []
        for target, step in found.items():
            lowered += sorted((step / LOWERED).glob("*.onnx"))
            measurements.append(folder / f"{target.replace('/', '-').replace(':', '')}.json")
            write_record(measurements[-1], [read_record(step / MEASUREMENT, Measurement)])
        made = bundle_model(
            candidate,
            folder / BUNDLE,
            lowered=lowered,
            verdict=verdict / VERDICT,
            measurements=measurements,
            licence=choice.licence,
            require_pass=True,
        )
        record = {
            "manifest_sha256": made.manifest_sha256,
            "size_bytes": made.size_bytes,
            "files": sorted(made.manifest.files),
            "notes": list(made.notes),
        }
        write_record(folder / BUNDLED, record)
        run.tell(f"{len(made.manifest.files)} files, {made.size_bytes:,} bytes")

    return run.workspace.step("bundle", parameters, work)


def why_not_bundled(verdict: Verdict, *, lacks_8_bits: bool) -> str | None:
    """Return why nothing may be bundled; None where it may."""
    if verdict.outcome.exit_code:
        return f"nothing was bundled, for the gate did not let the student pass ({verdict.describe()})"
    if lacks_8_bits:
        return "nothing was bundled, for 8 bits were asked for and lose more than distill.quantize_loss_points allows"
    return None
