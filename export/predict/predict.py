"""Predict what an execution provider would take of a model: node by node, with reasons, parts and the work that they cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monograph.export.fusion import FUSION_KEY
from monograph.export.fusion.macs import SEQUENCE_LENGTH
from monograph.export.fusion.sharing import members_by_output
from monograph.export.predict.graph import Node, free_dimensions, show
from monograph.export.predict.partitions import partition
from monograph.export.predict.quantised import QuantisedNode, quantised_nodes
from monograph.export.predict.rules import Rule, RuleBook, first_reason
from monograph.export.predict.work import work_of_nodes
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.results import PredictedNode, Prediction

Reasons = dict[str, str | None]
"""By the node's name: why it falls back, or None."""


def predict(file: OnnxFile, rules: RuleBook, *, batch_size: int = 1, sequence_length: int = SEQUENCE_LENGTH) -> Prediction:
    """Say what the provider of ``rules`` would take of ``file``, its free dimensions fixed to the given sizes.

    Raises:
        SourceError: ONNX Runtime cannot load the model, or the model cannot have these sizes.
    """
    dimensions = free_dimensions(file.path, batch_size, sequence_length)
    shown = show(file.path, dimensions)
    reasons = judge(shown.nodes, rules)
    free = judge(show(file.path, {}).nodes, rules) if dimensions else reasons
    parts = _partitions(shown.nodes, reasons, rules)
    part_of = {name: index for index, part in enumerate(parts) for name in part}
    macs = work_of_nodes(shown.proto, sequence_length)
    members = members_by_output(file.path) if FUSION_KEY in file.metadata else {}
    nodes = tuple(
        PredictedNode(
            name=node.name,
            op_type=node.operator,
            members=next((members[output.name] for output in node.outputs if output.name in members), ()),
            is_supported=reasons[node.name] is None,
            reason=reasons[node.name],
            partition=part_of.get(node.name),
            macs=None if macs is None else macs.get(node.name, 0),
        )
        for node in shown.nodes
    )
    return Prediction(
        provider=rules.provider,
        rules=rules.title,
        nodes=nodes,
        partition_sizes=tuple(map(len, parts)),
        node_share=_share(reasons),
        macs_share=_macs_share(nodes),
        fixed_dimensions=dimensions,
        free_node_share=_share(free),
        sources=rules.sources,
        notes=rules.notes,
    )


def judge(nodes: Sequence[Node], rules: RuleBook) -> Reasons:
    """Return for every node why it falls back, or None where the provider takes it."""
    reasons: Reasons = {node.name: rules.judge(node) for node in nodes}
    if rules.quantised is not None:
        for one in quantised_nodes(nodes):
            reasons |= dict.fromkeys(one.parts, _judge_quantised(one, rules.quantised, rules))
    _fuse_activations(nodes, reasons, rules)
    if not rules.enters_branches:
        reasons |= {node.name: f"stands in {node.scope}, and the provider enters no branches" for node in nodes if node.scope}
    for part in _partitions(nodes, reasons, rules):
        alone = next(node for node in nodes if node.name == part[0])
        if len(part) == 1 and alone.op_type in rules.not_alone:
            reasons[alone.name] = "a part that only moves data is not worth its copies"
    return reasons


def _judge_quantised(one: QuantisedNode, quantised: Mapping[str, tuple[Rule, ...]], rules: RuleBook) -> str | None:
    if not one.has_constant_scales:
        return "a scale or zero point is not constant"
    own = quantised.get(one.node.operator)
    if own is None:
        return f"{rules.name} has no quantised {one.node.operator}"
    return first_reason(one.node, (*rules.general, *own))


def _fuse_activations(nodes: Sequence[Node], reasons: Reasons, rules: RuleBook) -> None:
    """Take the activations that the provider runs with the node before them."""
    maker = {output.name: node for node in nodes for output in node.outputs}
    for node in nodes:
        data = node.input(0)
        if node.op_type not in rules.fused_activations or data is None or node.domain:
            continue
        before = maker.get(data.name)
        if before is None or before.op_type not in rules.fusing or reasons[before.name] is not None:
            reasons[node.name] = (
                f"runs only with the {' or '.join(sorted(rules.fusing))} before it, and there is none that it takes"
            )
        elif any(bound is not None and not bound.is_constant for bound in node.inputs[1:]):
            reasons[node.name] = "its bounds are not constant"
        else:
            reasons[node.name] = None


def _partitions(nodes: Sequence[Node], reasons: Reasons, rules: RuleBook) -> list[list[str]]:
    """Return the parts of the graph and of its branches; ``rules`` may leave the branches out."""
    supported = {name: reason is None for name, reason in reasons.items()}
    scopes = dict.fromkeys(node.scope for node in nodes if rules.enters_branches or not node.scope)
    return [part for scope in scopes for part in partition([node for node in nodes if node.scope == scope], supported)]


def _share(reasons: Reasons) -> float:
    return sum(reason is None for reason in reasons.values()) / len(reasons) if reasons else 0.0


def _macs_share(nodes: Sequence[PredictedNode]) -> float | None:
    counts = [node.macs for node in nodes]
    if None in counts or not sum(count or 0 for count in counts):
        return None
    return sum(node.macs or 0 for node in nodes if node.is_supported) / sum(count or 0 for count in counts)
