"""What a policy asks for and cannot be had here is told before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from monograph.errors import ConfigError
from monograph.export.lowering import lowering_of
from monograph.models.onnx_file import OnnxFile
from monograph.pipelines.gate.policy import Policy
from monograph.runtime.coverage import require_coverage
from monograph.runtime.results import Evidence
from monograph.runtime.targets import Target, find_target


def gate_targets(on: Sequence[str], policy: Policy) -> list[Target]:
    """Return the targets to run on: those named, else those with limits of their own, else the processor.

    Raises:
        ConfigError: one is unknown or not here.
    """
    targets = [find_target(name) for name in on or policy.targets or ("cpu",)]
    for target in targets:
        target.require_here()
    return targets


def check_possible(
    policy: Policy, candidate: OnnxFile, reference: OnnxFile, targets: Sequence[Target], *, has_data: bool
) -> None:
    """Refuse a policy that these models, rows and targets cannot be tested by.

    Raises:
        ConfigError: what is asked for cannot be had; the message says why and how to mend it.
    """
    _check_kinds(policy, candidate, reference)
    if policy.asks_outputs and not has_data:
        raise ConfigError("the policy tests answers, and there are no rows to answer: give them by --data")
    require_coverage(reference, find_target("cpu"))
    for target in targets:
        _check_target(policy, target)
        require_coverage(candidate, target)
        limits = policy.targets.get(target.name)
        for file in (candidate, reference) if limits is not None and limits.p50_ratio is not None else (candidate,):
            if target.lowering is not None and lowering_of(file) is None:
                raise ConfigError(
                    f"{target.name} takes another form of {file.path.name}, and that is what has to be tested: monograph lower "
                    f"{file.path} --to {target.lowering} -o LOWERED.onnx --calibration DATA"
                )
    if policy.asks_outputs and all(target.evidence_here is Evidence.PREDICTED for target in targets):
        names = ", ".join(target.name for target in targets)
        raise ConfigError(f"nothing runs on {names} here, so no answer can be tested: give --on cpu,{names}")


def require_latency(policy: Policy, target: str, evidence: Evidence) -> None:
    """Refuse limits of time or memory where no real hardware runs the model.

    Raises:
        ConfigError: the policy has such limits for ``target``, whose figures are ``evidence``.
    """
    limits = policy.targets.get(target)
    if limits is None or not limits.need_latency or evidence.gives_latency:
        return
    raise ConfigError(
        f"targets.{target}.{limits.need_latency[0]}: figures of {target} are {evidence.value} here, which is no latency: gate on "
        f"the device itself (--on ssh://HOST/…), or take {', '.join(limits.need_latency)} out of the policy"
    )


def _check_target(policy: Policy, target: Target) -> None:
    require_latency(policy, target.name, target.evidence_here)


def _check_kinds(policy: Policy, candidate: OnnxFile, reference: OnnxFile) -> None:
    own, other = candidate.contract.kind, reference.contract.kind
    if policy.asks_classes and not (own.has_classes and other.has_classes):
        kind = own.value if not own.has_classes else other.value
        raise ConfigError(
            f"the policy has {policy.asks_classes[0]}, which is for classifiers, and here is a model of kind {kind}"
        )
    if policy.error is not None and own.has_classes:
        raise ConfigError(f"the policy has error, which is for regressions, and {candidate.path.name} gives {own.value}")
    if policy.parity is not None and own is not other:
        raise ConfigError(f"the policy has parity, and {own.value} cannot equal {other.value}: take it out, or export both alike")
