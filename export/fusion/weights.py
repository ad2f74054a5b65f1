"""Members' weights: checked, or fitted on validation rows.

Shape letters: ``n`` rows, ``c`` classes, ``k`` outputs that are no classes, ``m`` members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax

from monograph.errors import FusionError
from monograph.export.fusion.forms.form import Stacking

Array = npt.NDArray[Any]
_SUM_TOLERANCE = 0.01
"""Room for weights typed with two decimals, such as 0.33,0.33,0.33."""
_NEGLIGIBLE_WEIGHT = 1e-3


def check_weights(weights: Sequence[float] | None, member_count: int, *, normalize: bool = False) -> tuple[float, ...]:
    """Return weights that sum to one: equal ones where none are given.

    Weights that sum to 1 within 0.01 are rescaled to sum to exactly 1, others only on request.

    Raises:
        FusionError: there are not as many as members, or they are not finite, negative, all zero, or of another sum.
    """
    if weights is None:
        return (1.0 / member_count,) * member_count
    written = ",".join(f"{weight:g}" for weight in weights)
    if len(weights) != member_count:
        raise FusionError(f"{len(weights)} weights ({written}) for {member_count} members: give one weight a member")
    if not all(math.isfinite(weight) for weight in weights):
        raise FusionError(f"weights {written} are not all finite: give numbers")
    if any(weight < 0 for weight in weights):
        raise FusionError(f"weights {written} are not all positive: a weighted mean takes weights from 0 to 1")
    total = math.fsum(weights)
    if total == 0:
        raise FusionError(f"weights {written} are all zero: at least one member must count")
    if abs(total - 1) > _SUM_TOLERANCE + 1e-9 and not normalize:
        scaled = ",".join(f"{weight / total:.4g}" for weight in weights)
        raise FusionError(f"weights {written} sum to {total:g}, expected 1: pass --normalize, or --weights {scaled}")
    return tuple(float(weight) / total for weight in weights)


@dataclass(frozen=True)
class WeightFit:
    """Weights chosen on validation rows, and what they gained there over equal weights."""

    weights: tuple[float, ...]
    row_count: int
    rows_sha256: str
    loss: float
    """On the rows fitted on, of the kind ``loss_name``; also of equal weights and of each member."""
    equal_weights_loss: float
    member_loss: tuple[float, ...]
    loss_name: str = "NLL"
    """``NLL``, negative log-likelihood in nats, the mean over the rows; or ``RMSE``, in the unit of the targets."""
    form: str | None = None
    """The form that was fitted; None takes what the plan is asked for."""
    temperatures: tuple[float, ...] | None = None
    stacking: Stacking | None = None
    class_weights: tuple[tuple[float, ...], ...] | None = None
    """``[m, c]``, classes in the fused order; ``weights`` then holds each member's mean over the classes."""
    gain: Gain | None = None
    cautions: tuple[str, ...] = ()
    """What the rows were too few for, each a clause for the user."""

    def describe(self) -> str:
        """Return one line for people."""
        more = "".join(f"; {clause}" for clause in ([self.gain.describe()] if self.gain else []) + list(self.cautions))
        number = "{:.4f}" if self.loss_name == "NLL" else "{:.4g}"
        fitted, equal, best = map(number.format, (self.loss, self.equal_weights_loss, min(self.member_loss)))
        return f"fitted on {self.row_count} rows: {self.loss_name} {fitted} (equal weights {equal}, best member {best}){more}"


@dataclass(frozen=True)
class Gain:
    """What a fusion gains over its best member on rows that its numbers were not fitted on."""

    amount: float
    """In ``unit``, positive where the fusion is better, with its 95% interval."""
    low: float
    high: float
    luck_probability: float
    """Share of bootstrap resamples in which nothing is gained."""
    best_member: str
    unit: str = "points"
    """``points`` of accuracy, or ``RMSE``, by how much the fusion's is lower."""
    forms_tried: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return one clause for people."""
        chosen = f"form chosen from {', '.join(self.forms_tried)}; " if len(self.forms_tried) > 1 else ""
        if self.unit == "points":
            gained = f"{self.amount:+.2f} points [{self.low:+.2f}, {self.high:+.2f}] over {self.best_member}"
        else:
            gained = f"{self.unit} lower by {self.amount:.4g} [{self.low:.4g}, {self.high:.4g}] than {self.best_member}'s"
        return f"{chosen}held out, {gained}, {self.luck_probability:.0%} likely to be luck"


def fit_weights(outputs: Sequence[Array], labels: Array, *, are_logits: bool, rows_sha256: str) -> WeightFit:
    """Choose weights on the simplex that minimise the NLL of the fused output on validation rows.

    For logits that is NLL(softmax(Σ αᵢzᵢ)), for probabilities NLL(Σ αᵢpᵢ); both are convex in α, so the minimum that
    is found is the minimum. Weights below 0.001 become 0.

    Args:
        outputs: one array ``float64 [n, c]`` a member, all logits or all probabilities, in the same class order.
        labels: ``int64 [n]``.
        are_logits: which of the two the outputs are.
        rows_sha256: digest of the rows, kept as a record of what the weights have seen.

    Raises:
        FusionError: an output is not finite.
    """
    stacked = np.stack(outputs)  # [m, n, c]
    if not np.isfinite(stacked).all():
        raise FusionError("a member's output is not finite on the rows to fit on: weights cannot be fitted")
    member_count = len(stacked)
    picked = stacked[:, np.arange(len(labels)), labels]  # [m, n], of the true class

    def nll(weights: Array) -> float:
        return _nll_of_logits(weights, stacked, picked) if are_logits else _nll_of_probabilities(weights, picked)

    best = _minimise_on_simplex(nll, member_count)
    equal = np.full(member_count, 1.0 / member_count)
    return WeightFit(
        weights=tuple(float(weight) for weight in best),
        row_count=len(labels),
        rows_sha256=rows_sha256,
        loss=nll(best),
        equal_weights_loss=nll(equal),
        member_loss=tuple(nll(one) for one in np.eye(member_count)),
    )


def fit_mean_weights(outputs: Sequence[Array], targets: Array, *, rows_sha256: str) -> WeightFit:
    """Choose weights on the simplex that minimise the mean squared error of Σ αᵢOᵢ on validation rows.

    Because the weights sum to one, that error is αᵀGα with G the mean products of the members' errors (Bates and Granger
    1969, doi 10.1057/jors.1969.103): a convex problem of the size of the members. Weights below 0.001 become 0.

    Args:
        outputs: one array ``float64 [n, …]`` a member, of the shape of ``targets``.
        targets: ``float64 [n, …]``.
        rows_sha256: digest of the rows, kept as a record of what the weights have seen.
    """
    products = error_products(outputs, targets)
    member_count = len(products)

    def rmse(weights: Array) -> float:
        return math.sqrt(max(float(weights @ products @ weights), 0.0))

    scale = float(np.trace(products)) / member_count or 1.0  # the search stops by absolute differences
    best = _minimise_on_simplex(lambda weights: float(weights @ products @ weights) / scale, member_count)
    return WeightFit(
        weights=tuple(float(weight) for weight in best),
        row_count=len(targets),
        rows_sha256=rows_sha256,
        loss=rmse(best),
        equal_weights_loss=rmse(np.full(member_count, 1.0 / member_count)),
        member_loss=tuple(rmse(one) for one in np.eye(member_count)),
        loss_name="RMSE",
    )


def error_products(outputs: Sequence[Array], targets: Array) -> Array:
    """Return the mean products of members' errors, ``float64 [m, m]``; its diagonal holds their mean squared errors."""
    errors = np.stack([(output - targets).ravel() for output in outputs])  # [m, n·k]
    products: Array = errors @ errors.T / errors.shape[1]
    return products


def _minimise_on_simplex(loss: Callable[[Array], float], member_count: int) -> Array:
    """Return the weights at the minimum of a convex ``loss``, or where the search ends early the best known ones."""
    equal = np.full(member_count, 1.0 / member_count)
    result = minimize(
        loss,
        equal,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * member_count,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1.0},
        options={"ftol": 1e-9, "maxiter": 200},
    )
    best = np.where(result.x < _NEGLIGIBLE_WEIGHT, 0.0, result.x)
    # The search can stop early on logits of very large scale: what it found is taken only where it is the best.
    return np.asarray(min((equal, best / best.sum(), *np.eye(member_count)), key=loss))


def _nll_of_logits(weights: Array, stacked: Array, picked: Array) -> float:
    fused = np.einsum("m,mnc->nc", weights, stacked)
    log_normaliser = fused[:, :1] - log_softmax(fused, axis=1)[:, :1]
    return float(np.mean(log_normaliser[:, 0] - weights @ picked))


def _nll_of_probabilities(weights: Array, picked: Array) -> float:
    return float(-np.mean(np.log(np.maximum(weights @ picked, np.finfo(np.float64).tiny))))
