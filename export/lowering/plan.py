"""The plan of a model in mixed precision: which layers are quantised, which stay in float and why. Nothing is written yet."""

from __future__ import annotations

from dataclasses import dataclass

from monograph.export.lowering.promise import Loss


@dataclass(frozen=True)
class PlannedLayer:
    """One layer that the lowering could quantise."""

    name: str
    operator: str
    nodes: tuple[str, ...]
    macs: int | None
    """Multiply-accumulates of a row; None where they cannot be counted."""
    macs_share: float | None
    """Of the whole model's."""
    weight_bytes: int
    """In float."""
    local_error: float | None
    """‖difference‖/‖float‖ of what the layer gives in 8 bits for inputs in float; None where its tensors are in neither graph."""
    output_error: float | None
    """The same of the model's output with this layer alone in 8 bits; None where no search was needed."""
    stays_float: bool
    why: str
    """Why it stays in float; empty where it does not."""


@dataclass(frozen=True)
class MixedPrecisionPlan:
    """What is going to be quantised, found on rows that the promise is not tested on."""

    model: str
    lowering: str
    option: str
    """The limit as it was asked for."""
    measure: str
    limit_points: float
    layers: tuple[PlannedLayer, ...]
    whole: Loss
    """Of all layers in 8 bits, on the search rows."""
    chosen: Loss
    """Of what is planned, on the search rows."""
    expected_bound_points: float
    """The bound that the proof rows will keep with the probability 0.9."""
    calibration_rows: int
    search_rows: int
    proof_rows: int
    evaluations: int
    """Quantised models that were run on rows: alone for their sensitivity, and in the search."""
    reused: int
    """How many of them an interrupted search had done before."""
    rows_evaluated: int
    """Rows that those models were run on, all together."""
    model_builds: int
    """How many times the model was quantised, those of an interrupted search included."""

    @property
    def kept(self) -> tuple[PlannedLayer, ...]:
        """The layers that stay in float."""
        return tuple(layer for layer in self.layers if layer.stays_float)

    @property
    def keep_float(self) -> frozenset[str]:
        """The names of all nodes of layers that stay in float."""
        return frozenset(node for layer in self.kept for node in layer.nodes)

    def describe(self) -> str:
        """Return one line for people."""
        total = sum(layer.weight_bytes for layer in self.layers)
        kept = sum(layer.weight_bytes for layer in self.kept)
        share = f" ({kept / total:.0%} of the weights)" if kept and total else ""
        return (
            f"{len(self.kept)} of {len(self.layers)} layers stay in float{share}: on {self.search_rows:,} search rows "
            f"{self.chosen.points:.2f} points of {self.measure} are lost, {self.whole.points:.2f} with all of them in 8 bits; "
            f"{self.evaluations} evaluations, {self.rows_evaluated:,} rows run"
        )
