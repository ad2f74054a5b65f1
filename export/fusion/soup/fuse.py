"""Make a soup: plan, average, recompute, prove, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from monograph.errors import FusionError
from monograph.export.fusion.fuse import FUSION_BATCH_SIZES, FUSION_KEY
from monograph.export.fusion.soup.batchnorm import Statistics, recompute_statistics
from monograph.export.fusion.soup.networks import align_networks, mix
from monograph.export.fusion.soup.plan import SoupPlan
from monograph.export.fusion.soup.reference import check_statistics, write_reference
from monograph.export.parity import TOLERANCE, ParityProof
from monograph.export.trace import write_proven
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.seen import NOTHING_SEEN, SeenRows, seen_metadata
from monograph.runtime.session import open_session


@dataclass(frozen=True)
class Souped:
    """One network of the members' mean weights, proven to be that."""

    file: OnnxFile
    plan: SoupPlan
    proof: ParityProof
    node_count: int
    statistics_row_count: int
    """Rows on which BatchNorm statistics were recomputed; 0 where they were not."""

    def describe(self) -> str:
        """Return one line for people."""
        statistics = f"; BatchNorm statistics of {self.statistics_row_count} rows" if self.statistics_row_count else ""
        return self.proof.describe() + statistics


def fuse_soup(
    plan: SoupPlan,
    path: Path,
    *,
    rows: Rows | None = None,
    statistics_rows: Rows | None = None,
    batch_sizes: Sequence[int] = FUSION_BATCH_SIZES,
    tolerance: float = TOLERANCE,
    seen: SeenRows = NOTHING_SEEN,
) -> Souped:
    """Average the weights of ``plan``'s members, prove the network to be the one that numpy makes of their files, and write it.

    Args:
        plan: of the soup.
        path: where to write.
        rows: of the proof; fresh random ones by default.
        statistics_rows: on which BatchNorm statistics are recomputed, where the plan says so.
        batch_sizes: of the proof.
        tolerance: largest absolute error allowed, as a share of the largest absolute reference value.
        seen: rows that its members were fitted on, or that they were chosen on, which it says too.

    Raises:
        FusionError: the members are not one network, or their BatchNorm statistics cannot be computed on these rows, or
            there are none where the plan says so.
        ParityError: the soup does not compute what it should; nothing is written.
    """
    networks = align_networks(plan.members, plan.opset)
    model = mix(networks, [member.weight for member in plan.members])
    statistics: dict[str, Statistics] = {}
    used: Rows | None = None
    if plan.recomputes_statistics:
        if statistics_rows is None:
            raise FusionError(
                f"the plan recomputes statistics of {plan.batch_norm_count} BatchNorm nodes, and no rows are given: "
                "pass those that it was made with as statistics_rows"
            )
        statistics, used = recompute_statistics(model, plan.contract, statistics_rows)
    with TemporaryDirectory(prefix="monograph-soup-") as folder:
        reference = Path(folder) / "reference.onnx"
        write_reference(networks, plan.members, plan.opset, statistics, reference)
        if used is not None:
            check_statistics(reference, plan.contract, used, statistics)
        proof = write_proven(
            model,
            path,
            plan.contract,
            open_session(reference),
            names=("the members' weights averaged in numpy", path.name),
            rows=rows,
            batch_sizes=batch_sizes,
            tolerance=max(tolerance, plan.rounding),
            tokenizer_json=plan.tokenizer_json,
            metadata={FUSION_KEY: plan.to_json(used)} | seen_metadata(seen, path),
        )
    node_count = sum(1 for _ in model.graph.all_nodes())
    return Souped(read_onnx(path), plan, proof, node_count, 0 if used is None else len(used))
