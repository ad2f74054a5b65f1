"""What a later member of a cascade computes as an earlier one did is not computed again for the hard rows: their rows are taken.

For operators that treat each row of a batch by itself, f(x[hard]) = f(x)[hard]. A node of the later member's branch that has
the operator, settings and weights of one outside, and reads the same values but for the choice of rows, goes; what the rest
of the branch reads of it becomes a Compress of what the outer node gave. So heads on one trunk, or exits of one network,
run the trunk once, and it is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.tape import Tape

from monograph.export.fusion.sharing import tensor_key
from monograph.export.fusion.sharing.canonical import attribute_key, is_commutative
from monograph.export.fusion.sharing.provenance import record_merge
from monograph.export.fusion.sharing.shape_values import whole_numbers
from monograph.export.fusion.sharing.size_rules import reduced_axes
from monograph.export.fusion.sharing.sizes import Sizes

_ROW_BY_ROW = frozenset(
    {
        "Abs", "Add", "And", "AveragePool", "Cast", "Ceil", "Clip", "Conv", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
        "Gelu", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
        "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "MaxPool", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu",
        "Pow", "Reciprocal", "Relu", "Reshape", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Sub", "Sum",
        "Tanh", "Where",
    }
)  # fmt: skip
Key = tuple[Hashable, ...]


Ranks = dict[ir.Value, int | None]
"""Values that hold one entry a row of the batch, along their first axis, and how many axes they have."""


def rows_of(model: ir.Model) -> Ranks:
    """Return the values of ``model`` that hold one entry a row."""
    sizes = Sizes(model.graph)
    batches = [(value, 0) for value in model.graph.inputs]
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {value: sizes.rank(value) for value in values if sizes.size(value, 0) in batches}


@dataclass(frozen=True)
class Stage:
    """A member as it stands in a cascade."""

    nodes: Sequence[ir.Node]
    rows: Ranks


def reuse_rows(
    outer: Stage,
    branch: Stage,
    branch_nodes: Sequence[ir.Node],
    gathered: Mapping[ir.Value, ir.Value],
    hard: ir.Value,
    answer: ir.Value,
) -> tuple[list[ir.Node], list[ir.Node], ir.Value]:
    """Take from ``outer`` what ``branch`` computes of the same values for the hard rows.

    Args:
        outer: the member that runs for all rows of this stage.
        branch: the member that runs for the hard ones.
        branch_nodes: all nodes of the branch, in order: the member's, and what is made of its output.
        gathered: the branch's inputs, each the rows of an outer value, by that value.
        hard: bool ``[b]``.
        answer: the output of the branch.

    Returns:
        New nodes that take rows of outer values, the nodes of the branch that stay, and its output.
    """
    chosen = {rows: value for value, rows in gathered.items()}  # a value of the branch, and the outer one it is the rows of
    known = {key: node for node in outer.nodes if (key := _key(node, {value: value for value in outer.rows})) is not None}
    gone: list[ir.Node] = []
    for node in branch.nodes:
        key = _key(node, chosen)
        twin = None if key is None else known.get(key)
        if (
            twin is None
            or not _is_row_by_row(node, branch.rows)
            or not (set(node.outputs) <= set(branch.rows) and set(twin.outputs) <= set(outer.rows))
        ):
            continue
        chosen.update(zip(node.outputs, twin.outputs, strict=True))
        record_merge(twin, node)
        gone.append(node)
    tape = Tape()
    for value in (value for node in gone for value in node.outputs):
        if any(user not in gone for user in value.consumers()) or value is answer:
            source = chosen[value]
            rows = tape.op("Compress", [source, hard], {"axis": 0})
            rows.type = value.type or source.type
            value.replace_all_uses_with(rows)
            answer = rows if value is answer else answer
    for node in gone:
        node.resize_inputs(0)  # so that nothing of it keeps a weight
    kept = set(gone)
    return list(tape.nodes), [node for node in branch_nodes if node not in kept], answer


def _key(node: ir.Node, chosen: Mapping[ir.Value, ir.Value]) -> Key | None:
    """Return what two nodes have in common that do the same to the same rows; None where one reads anything else."""
    attributes = attribute_key(node)
    if attributes is None or node.domain != "":
        return None
    inputs: list[Hashable] = []
    for value in node.inputs:
        if value is None:
            inputs.append(None)
        elif value in chosen:
            inputs.append(id(chosen[value]))
        elif value.const_value is not None and not value.is_graph_input():
            inputs.append(tensor_key(value.const_value))
        else:
            return None
    if is_commutative(node):
        inputs.sort(key=str)
    return (node.op_type, attributes, tuple(inputs), len(node.outputs)) if any(isinstance(key, int) for key in inputs) else None


def _is_row_by_row(node: ir.Node, ranks: Ranks) -> bool:
    """True where each row of the output follows from the same row of the inputs.

    Of its outputs it is known that they hold one entry a row, so a Reshape keeps rows where they are.
    """
    check = _CHECKS.get(node.op_type)
    return check(node, ranks) if check else node.op_type in _ROW_BY_ROW


def _is_after_rows(axis: int, node: ir.Node, ranks: Ranks) -> bool:
    rank = None if node.inputs[0] is None else ranks.get(node.inputs[0])
    return axis > 0 if axis >= 0 or rank is None else axis + rank > 0


def _axis(default: int) -> Callable[[ir.Node, Ranks], bool]:
    return lambda node, ranks: _is_after_rows(node.attributes.get_int("axis", default), node, ranks)


def _axes(axes: Sequence[int] | None, node: ir.Node, ranks: Ranks) -> bool:
    return bool(axes) and all(_is_after_rows(axis, node, ranks) for axis in axes or ())


def _gather(node: ir.Node, ranks: Ranks) -> bool:
    """Rows of indices into a table, or the same places of every row."""
    table = node.inputs[0]
    return (table is not None and table.const_value is not None) or node.attributes.get_int("axis", 0) > 0


def _matmul(node: ir.Node, ranks: Ranks) -> bool:
    """A second factor of rows is one matrix a row where it has more than two axes."""
    right = node.inputs[1]
    return right is not None and (right.const_value is not None or (ranks.get(right) or 0) > 2)


def _gemm(node: ir.Node, ranks: Ranks) -> bool:
    constant = [value is None or value.const_value is not None for value in node.inputs[1:]]
    return all(constant) and not node.attributes.get_int("transA", 0)


_CHECKS: dict[str, Callable[[ir.Node, Ranks], bool]] = {
    "BatchNormalization": lambda node, ranks: not node.attributes.get_int("training_mode", 0),
    "Concat": _axis(0),
    "Flatten": lambda node, ranks: node.attributes.get_int("axis", 1) == 1,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _axis(-1),
    "LogSoftmax": _axis(-1),
    "MatMul": _matmul,
    "Slice": lambda node, ranks: _axes(whole_numbers(node.inputs[3]) if len(node.inputs) > 3 else None, node, ranks),
    "Softmax": _axis(-1),
    "Squeeze": lambda node, ranks: _axes(whole_numbers(node.inputs[1]) if len(node.inputs) > 1 else None, node, ranks),
    "Transpose": lambda node, ranks: "perm" in node.attributes and node.attributes["perm"].as_ints()[0] == 0,
    "Unsqueeze": lambda node, ranks: min(whole_numbers(node.inputs[1]) or [0]) > 0,
    **dict.fromkeys(
        ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), lambda node, ranks: _axes(reduced_axes(node), node, ranks)
    ),
}
