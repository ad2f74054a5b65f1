"""Where a bundle's models come from: ``lineage.json``, from what the files themselves say and nothing else."""

from __future__ import annotations

import hashlib
from typing import Any

from monograph import __version__
from monograph.pipelines.bundle.forms import Form
from monograph.pipelines.bundle.plan import BundlePlan

_VERSION = 1


def lineage_of(plan: BundlePlan) -> dict[str, Any]:
    """Return members, data, versions and commands with their digests; no time and no folder of this machine."""
    return {
        "version": _VERSION,
        "command": plan.command,
        "monograph": __version__,
        "licence": plan.licence,
        "models": [_form(form) for form in plan.forms],
        "verdict": None if plan.verdict is None else _verdict(plan),
        "measurements": [
            {"file": f"measurements/{file.name}", "models": sorted({one.sha256 for one in file.measurements})}
            for file in plan.measurements
        ],
    }


def _form(form: Form) -> dict[str, Any]:
    return {
        "file": form.place,
        "name": form.path.name,
        "sha256": form.sha256,
        "size_bytes": form.size_bytes,
        "lowering": form.lowering,
        "made_by": dict(form.golden.made_by),
        "records": form.records,
        "seen_rows": {
            "uses": dict(form.seen.uses),
            "row_count": len(form.seen),
            "sha256": hashlib.sha256(form.seen.digests.tobytes()).hexdigest() if len(form.seen) else None,
        },
    }


def _verdict(plan: BundlePlan) -> dict[str, Any]:
    assert plan.verdict is not None
    verdict = plan.verdict
    return {
        "file": "verdict.json",
        "outcome": verdict.outcome.value,
        "reference_sha256": verdict.reference.sha256,
        "rows_sha256": verdict.rows_sha256,
        "row_count": verdict.row_count,
        "policy_sha256": verdict.policy_sha256,
        "created": verdict.created,
        "monograph": verdict.monograph,
    }
