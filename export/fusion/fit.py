"""Fit what a fusion leaves open on labelled validation rows.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError, FusionError
from monograph.export.fusion.align import align_classes
from monograph.export.fusion.fuse import in_fused_order
from monograph.export.fusion.plan import choose_form, member_names
from monograph.export.fusion.weights import WeightFit, fit_weights
from monograph.models.contract import Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]


def fit_fusion(files: Sequence[OnnxFile], rows: Sequence[Rows], combine: str | None = None) -> WeightFit:
    """Fit the members' weights on validation rows; ``rows`` holds the same rows once a member, ready for its inputs.

    Raises:
        FusionError: the members are no classifiers, or cannot be fused.
        DataError: the rows have no labels, or labels of other classes.
    """
    names = member_names([file.path for file in files])
    contracts = [file.contract for file in files]
    form = choose_form(contracts, names, combine)
    if not contracts[0].kind.has_classes:
        raise FusionError(f"{names[0]} gives {contracts[0].kind.value}: weights are fitted for classifiers only, give --weights")
    _, class_positions = align_classes(contracts, names)
    # Each member's rows number the labels in its own order; the fused one is the first's that names its classes.
    leader = next((index for index, contract in enumerate(contracts) if contract.class_names), 0)
    labels = rows[leader].required_labels().astype(np.int64)
    outputs = []
    for file, name, positions, member_rows in zip(files, names, class_positions, rows, strict=True):
        output = run_all_rows(open_session(file.path, spinning=False), file.contract, member_rows)
        _check_fits_labels(output, labels, name, rows[leader].origin)
        outputs.append(form.convert(in_fused_order(output, positions, name), file.contract.kind))
    if len({output.shape for output in outputs}) > 1:
        counts = ", ".join(f"{name} {output.shape[1]}" for name, output in zip(names, outputs, strict=True))
        raise FusionError(f"members give different numbers of classes ({counts}): only models of the same classes can be fused")
    return fit_weights(
        outputs, labels, are_logits=form.output_kind(contracts[0].kind) is Kind.LOGITS, rows_sha256=rows[leader].sha256()
    )


def _check_fits_labels(output: Array, labels: Array, name: str, origin: str) -> None:
    if output.ndim != 2 or len(output) != len(labels):
        raise FusionError(
            f"{name} gives an array of shape {output.shape} for {len(labels)} labels: "
            "weights are fitted for one row of classes a label"
        )
    if labels.min() < 0 or labels.max() >= output.shape[1]:
        raise DataError(
            f"{origin}: labels run from {labels.min()} to {labels.max()}, "
            f"but {name} has {output.shape[1]} classes, counted from 0"
        )
