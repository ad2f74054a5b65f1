"""The plan of a soup: frozen, printable, testable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from monograph.errors import FusionError
from monograph.export.fusion.plan import FusionPlan, Member, plan_fusion
from monograph.export.fusion.soup.batchnorm import count_hidden_batch_norms, find_batch_norms
from monograph.export.fusion.soup.connection import Connection, connect
from monograph.export.fusion.soup.fit import SoupFit, fit_soup
from monograph.export.fusion.soup.networks import Networks, align_networks
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile


@dataclass(frozen=True)
class SoupPlan:
    """What will be built: one network, the members whose weights are averaged, and what is known of their connection."""

    members: tuple[Member, ...]
    contract: Contract
    opset: int
    rounding: float
    """Share of the output's scale that the members' own outputs do not resolve: 0 unless one gives float16."""
    weight_count: int
    """Weights (tensors) in which members differ."""
    parameter_count: int
    """How many numbers these hold."""
    batch_norm_count: int
    """BatchNorm nodes whose statistics can be recomputed; exporters fold most of them into other weights."""
    statistics_row_count: int
    """Rows that there are to recompute them on; where there are none they are averaged."""
    connection: Connection
    fit: SoupFit | None
    tokenizer_json: str | None
    notes: tuple[str, ...]
    """What was assumed or decided, each a sentence for the user."""

    @property
    def running(self) -> tuple[Member, ...]:
        """The members that are mixed: those of weight 0 are not."""
        return tuple(member for member in self.members if member.weight > 0)

    @property
    def recomputes_statistics(self) -> bool:
        """True where BatchNorm statistics are set to those of rows; a member by itself keeps its own."""
        return self.mixes_statistics and self.statistics_row_count > 0

    @property
    def mixes_statistics(self) -> bool:
        """True where there are BatchNorm nodes behind weights that are averaged."""
        return self.batch_norm_count > 0 and self.weight_count > 0 and len(self.running) > 1

    def describe(self) -> str:
        """Return the plan as text for people."""
        lines = [
            f"soup of {len(self.running)} of {len(self.members)} members: one network, W = Σ αᵢWᵢ over "
            f"{self.weight_count} weights ({self.parameter_count:,} numbers), opset {self.opset}"
        ]
        lines += [f"  inputs   {', '.join(spec.describe() for spec in self.contract.inputs)}"]
        lines += [f"  output   {self.contract.output.describe()}, {self.contract.kind.value}"]
        lines += [f"  {member.weight:.4f} x {member.name}" for member in self.members]
        lines += [f"  line     {line}" for line in self.connection.describe()]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_json(self, statistics_rows: Rows | None = None) -> str:
        """Return what goes under the metadata key ``monograph.fusion``.

        ``statistics_rows`` are those on which BatchNorm statistics were recomputed.
        """
        members = [
            {"name": member.name, "file": member.path.name, "sha256": member.sha256, "weight": member.weight}
            for member in self.members
        ]
        record = {
            "form": "soup",
            "members": members,
            "fit": asdict(self.fit) if self.fit else None,
            "connection": asdict(self.connection),
            "batch_norm": {
                "node_count": self.batch_norm_count,
                "recomputed_on": None
                if statistics_rows is None
                else {"row_count": len(statistics_rows), "rows_sha256": statistics_rows.sha256()},
            },
        }
        return json.dumps(record)


def plan_soup(
    files: Sequence[OnnxFile],
    *,
    names: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    normalize: bool = False,
    rows: Rows | None = None,
    greedy: bool = False,
    max_barrier: float | None = None,
) -> SoupPlan:
    """Decide how the weights of ``files`` become those of one network.

    Args:
        files: the members; the soup has the first one's graph.
        names: what to call them; by default what their files are called.
        weights: one a member, summing to 1; equal ones by default.
        normalize: scale ``weights`` to sum to 1.
        rows: ready for the first member. Labelled ones measure the loss along the line between members; all serve to
            recompute BatchNorm statistics.
        greedy: choose the members on ``rows``.
        max_barrier: the largest barrier allowed between two members, in points of accuracy; 2 by default.

    Raises:
        FusionError: members are not one network, do not share an initialisation, or the weights cannot be used.
        DataError: the rows have no labels where they are needed, or labels of other classes.
    """
    _check_kinds(files)
    fusion = plan_fusion(files, names=names, weights=weights, normalize=normalize)
    contract = _common_contract(files, fusion)
    networks = align_networks(fusion.members, fusion.opset)
    mixed = networks if greedy else networks.only([index for index, member in enumerate(fusion.members) if member.weight > 0])
    connection = connect(mixed, contract, rows, max_barrier)
    fit = None
    members = fusion.members
    if greedy:
        if rows is None:
            raise FusionError("a greedy soup is chosen on labelled validation rows: give them by --fit DATA")
        fit = fit_soup(networks, contract, rows)
        members = tuple(replace(member, weight=weight) for member, weight in zip(members, fit.weights, strict=True))
    plan = SoupPlan(
        members=members,
        contract=contract,
        opset=fusion.opset,
        rounding=fusion.rounding,
        weight_count=len(networks.weights),
        parameter_count=networks.parameter_count,
        batch_norm_count=len(find_batch_norms(networks.model)),
        statistics_row_count=0 if rows is None else len(rows),
        connection=connection,
        fit=fit,
        tokenizer_json=fusion.tokenizer_json,
        notes=(),
    )
    told = [note for file in files for note in file.contract.assumed]
    if weights is not None and tuple(weights) != tuple(member.weight for member in members):
        told.append(f"weights were scaled to sum to 1: {', '.join(f'{member.weight:.4g}' for member in members)}")
    return replace(plan, notes=tuple(dict.fromkeys([*told, *_soup_notes(plan, networks)])))


def _check_kinds(files: Sequence[OnnxFile]) -> None:
    for file in files[1:]:
        if file.contract.kind is not files[0].contract.kind:
            raise FusionError(
                f"{files[0].path.name} and {file.path.name} give {files[0].contract.kind.value} and {file.contract.kind.value}: "
                "members of a soup are one network, which gives one kind; export them again with the same kind"
            )


def _common_contract(files: Sequence[OnnxFile], fusion: FusionPlan) -> Contract:
    """Return the first member's contract, with the class names that any of them knows.

    A network between members exists only where they take and give the very same: nothing can be adapted for one of them.
    """
    first = files[0].contract
    for member, file in zip(fusion.members, files, strict=True):
        both = f"{fusion.members[0].name} and {member.name}"
        if member.class_positions is not None:
            raise FusionError(
                f"{both} do not have the same classes in the same order, so rows of their last layers stand for different "
                "classes: export them again with the same class names in one order, or fuse their outputs (without --soup)"
            )
        steps = [change for link in member.input_links for change in link.describe()]
        steps += [change for link in fusion.members[0].input_links for change in link.describe()]
        if steps or len(file.contract.inputs) != len(first.inputs):
            reason = f" ({', '.join(dict.fromkeys(steps))})" if steps else ""
            raise FusionError(
                f"{both} do not take the same inputs{reason}: members of a soup share one input; export them again, or fuse "
                "their outputs (without --soup)"
            )
    return replace(first, class_names=fusion.contract.class_names)


def _soup_notes(plan: SoupPlan, networks: Networks) -> list[str]:
    notes = [plan.fit.describe()] if plan.fit else []
    notes += [
        f"the barrier between {line.first} and {line.second} is {line.barrier_points:.2f} points, allowed "
        f"{plan.connection.max_barrier_points:g}, which on {line.row_count} rows may be chance: give more labelled rows to know"
        for line in plan.connection.lines
        if line.barrier_points > plan.connection.max_barrier_points >= line.barrier_low_points
    ]
    left_out = [member.name for member in plan.members if member.weight == 0]
    if left_out:
        notes.append(f"{', '.join(left_out)}: weight 0, not in the soup")
    if len(plan.running) == 1:
        notes.append(f"the soup is {plan.running[0].name} alone")
    if not plan.weight_count:
        notes.append("members have equal weights: the soup is the first of them")
    hidden = count_hidden_batch_norms(networks.model)
    if plan.recomputes_statistics:
        notes.append(f"statistics of {plan.batch_norm_count} BatchNorm nodes are recomputed on {plan.statistics_row_count} rows")
    elif plan.mixes_statistics:
        notes.append(
            f"statistics of {plan.batch_norm_count} BatchNorm nodes are averaged like weights, which is not what the averaged "
            "layers give: give rows by --fit or --data to recompute them"
        )
    elif not plan.batch_norm_count and not hidden:
        notes.append(
            "there are no BatchNorm statistics to recompute: the members have no BatchNorm, or their exporter folded it into "
            "other weights (torch.onnx.export keeps it with optimize=False)"
        )
    if hidden:
        notes.append(f"statistics of {hidden} BatchNorm nodes inside an If, Loop or Scan are averaged like weights")
    return notes
