"""The verb ``gate``: may this model take the place of that one? Pass, fail, or not enough evidence, which blocks."""

from monograph.pipelines.gate.check import Check, Outcome
from monograph.pipelines.gate.policy import Policy, default_policy, load_policy
from monograph.pipelines.gate.verb import gate_model
from monograph.pipelines.gate.verdict import Verdict

__all__ = ["Check", "Outcome", "Policy", "Verdict", "default_policy", "gate_model", "load_policy"]
