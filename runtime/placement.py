"""Whether a target really ran what it was asked to run.

A provider whose library cannot load, or which takes three nodes of a hundred, still gives right answers and a figure that
looks like its own. What counts is where the operators ran that do the work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from monograph.errors import PlacementError
from monograph.runtime.results import Placed

_WORK = ("Conv", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Attention", "Einsum", "LayerNorm", "BatchNorm", "Pool", "Resize")
"""Parts of the names of operators that do the work; ONNX Runtime's own fused ones carry them too."""
_NAMED = 3
_MADE = re.compile(r"(_nchwc|_token_\d+|_transpose|_quantized|_QuantizeLinear|_DequantizeLinear|/?_?fused.*)$")


def original_name(name: str) -> str:
    """Return a node's or value's name without what ONNX Runtime's optimisers append where they put another in its place."""
    return _MADE.sub("", name)


def works(op_type: str) -> bool:
    """Return True for an operator that does the work of a network: it multiplies, convolves, pools or normalises."""
    return any(part in op_type for part in _WORK)


def _rank(op_type: str) -> int:
    return 0 if works(op_type) else 2 if op_type in ("QuantizeLinear", "DequantizeLinear") else 1


def check_placement(
    placement: Sequence[Placed], provider: str, target: str, *, allow_fallback: bool, is_strict: bool = False
) -> list[str]:
    """Return warnings for what ran elsewhere than on ``provider``.

    Small operators, such as those of shapes, may run on the processor by a provider's own choice: they are told, not refused,
    unless ``is_strict``.

    Raises:
        PlacementError: ``provider`` ran nothing, or an operator that does the work ran elsewhere, unless ``allow_fallback``;
            with ``is_strict``, any operator.
    """
    own = sum(len(placed.nodes) for placed in placement if placed.provider == provider)
    foreign = [placed for placed in placement if placed.provider != provider]
    if not foreign:
        return []
    total = own + sum(len(placed.nodes) for placed in foreign)
    elsewhere = ", ".join(f"{len(placed.nodes)} on {placed.provider}" for placed in foreign)
    text = f"{own} of {total} nodes ran on {provider}, {elsewhere}"
    refused = [
        (op_type, node)
        for placed in foreign
        for node, op_type in zip(placed.nodes, placed.op_types, strict=True)
        if is_strict or works(op_type)
    ]
    # What the values are packed with goes where the work goes: the work names the reason.
    working = [f"{op_type} {node!r}" for op_type, node in sorted(refused, key=lambda pair: _rank(pair[0]))]
    if allow_fallback or (own and not working):
        return [text + (f" ({', '.join(working[:_NAMED])}{' …' if len(working) > _NAMED else ''})" if working else "")]
    named = f", among them {', '.join(working[:_NAMED])}" if working else ""
    raise PlacementError(
        f"{target} did not run the model: {text}{named}; its figure would not be {target}'s. Pass --allow-fallback to measure "
        "the mixture, or take a model that it can run"
    )
