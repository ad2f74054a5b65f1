"""What a mixture of members' weights gives on labelled rows, before anything is built.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError, FusionError
from monograph.export.fusion.soup.batchnorm import draw_rows, find_batch_norms, recompute_statistics, save_model
from monograph.export.fusion.soup.networks import Networks, mix
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.metrics import as_probabilities
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
_SMALLEST_PROBABILITY = 1e-12
_STATISTICS_ROWS = 512
"""Rows for BatchNorm statistics of a mixture that is only tried; of the soup that is built all rows are used."""


@dataclass(frozen=True)
class Score:
    """How right a network is on labelled rows."""

    accuracy: float
    """As a share, from 0 to 1."""
    nll: float
    """Negative log-likelihood in nats, the mean over the rows."""


def probabilities_of_mixture(
    networks: Networks, weights: Sequence[float], contract: Contract, rows: Rows, statistics_rows: Rows | None
) -> Array:
    """Return the probabilities ``float64 [n, c]`` that the mixture gives for ``rows``.

    BatchNorm statistics are those of ``statistics_rows``, or with None averaged like weights: a member's by itself its own.

    Raises:
        FusionError: the output is not finite, or not one row of classes a row.
    """
    model = mix(networks, weights)
    if statistics_rows is not None and find_batch_norms(model):
        recompute_statistics(model, contract, draw_rows(statistics_rows, _STATISTICS_ROWS))
    with TemporaryDirectory(prefix="monograph-soup-") as folder:
        path = Path(folder) / "mixture.onnx"
        save_model(model, path)
        output = run_all_rows(open_session(path), contract, rows)
    who = " + ".join(f"{weight:.3g} {name}" for name, weight in zip(networks.names, weights, strict=True) if weight)
    if output.ndim != 2 or len(output) != len(rows):
        raise FusionError(f"{who} gives an array of shape {output.shape} for {len(rows)} rows: expected one row of classes each")
    if not np.isfinite(output).all():
        raise FusionError(f"the output of {who} is not finite on the rows given: a soup cannot be judged by them")
    return as_probabilities(output, contract.kind)


def score_rows(probabilities: Array, labels: Array) -> tuple[Array, Array]:
    """Return for each row whether the best class is right, and its negative log-likelihood in nats: float64 ``[n]`` both."""
    picked = probabilities[np.arange(len(labels)), labels]
    return (probabilities.argmax(1) == labels).astype(np.float64), -np.log(np.maximum(picked, _SMALLEST_PROBABILITY))


def score(probabilities: Array, labels: Array) -> Score:
    """Score probabilities ``[n, c]`` against labels ``int64 [n]``."""
    correct, losses = score_rows(probabilities, labels)
    return Score(float(correct.mean()), float(losses.mean()))


def checked_labels(rows: Rows, class_count: int, name: str) -> Array:
    """Return the labels ``int64 [n]``.

    Raises:
        DataError: there are none, or some are of other classes.
    """
    labels = rows.required_labels().astype(np.int64)
    if labels.ndim != 1 or labels.min() < 0 or labels.max() >= class_count:
        raise DataError(
            f"{rows.origin}: labels run from {labels.min()} to {labels.max()}, but {name} has {class_count} classes, "
            "counted from 0"
        )
    return labels
