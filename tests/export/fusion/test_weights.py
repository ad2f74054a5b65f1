import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from monograph.errors import FusionError
from monograph.export.fusion.weights import check_weights, fit_weights

Array = npt.NDArray[np.float64]


class TestCheck:
    def test_equal_by_default(self):
        assert check_weights(None, 4) == (0.25,) * 4

    @pytest.mark.parametrize("weights", [(0.25, 0.75), (1.0, 0.0), (0.0, 1.0), (1, 0)])
    def test_kept_as_they_are(self, weights: tuple[float, float]):
        assert check_weights(weights, 2) == weights

    def test_two_decimals_are_enough(self):
        assert check_weights((0.33, 0.33, 0.33), 3) == pytest.approx((1 / 3,) * 3)
        assert sum(check_weights((0.34, 0.33, 0.34), 3)) == pytest.approx(1, abs=1e-15)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_numpys_numbers_become_pythons(self, dtype: type):
        assert [type(weight) for weight in check_weights(np.array([0.25, 0.75], dtype), 2)] == [float, float]  # type: ignore[arg-type]

    def test_of_any_sum_on_request(self):
        assert check_weights((3, 1), 2, normalize=True) == (0.75, 0.25)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ((0.5, 0.25, 0.25), "3 weights (0.5,0.25,0.25) for 2 members: give one weight a member"),
            ((1.0,), "1 weights (1) for 2 members: give one weight a member"),
            ((), "0 weights () for 2 members: give one weight a member"),
            ((math.nan, 1.0), "weights nan,1 are not all finite: give numbers"),
            ((math.inf, 0.0), "weights inf,0 are not all finite: give numbers"),
            ((1.5, -0.5), "weights 1.5,-0.5 are not all positive: a weighted mean takes weights from 0 to 1"),
            ((0.0, 0.0), "weights 0,0 are all zero: at least one member must count"),
            ((3.0, 1.0), "weights 3,1 sum to 4, expected 1: pass --normalize, or --weights 0.75,0.25"),
            ((0.5, 0.48), "weights 0.5,0.48 sum to 0.98, expected 1: pass --normalize, or --weights 0.5102,0.4898"),
            ((0.5, 0.52), "weights 0.5,0.52 sum to 1.02, expected 1: pass --normalize, or --weights 0.4902,0.5098"),
        ],
    )
    def test_refused(self, weights: tuple[float, ...], message: str):
        with pytest.raises(FusionError) as info:
            check_weights(weights, 2)
        assert str(info.value) == message
        assert info.value.exit_code == 2

    @pytest.mark.parametrize("weights", [(math.nan, 1.0), (-1.0, 2.0), (0.0, 0.0)])
    def test_normalising_forgives_only_the_sum(self, weights: tuple[float, float]):
        with pytest.raises(FusionError):
            check_weights(weights, 2, normalize=True)

    @given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6))
    @settings(max_examples=50, deadline=None)
    def test_normalised_weights_sum_to_one_and_keep_their_ratios(self, weights: list[float]):
        checked = check_weights(weights, len(weights), normalize=True)
        assert math.fsum(checked) == pytest.approx(1, abs=1e-12)
        for one, other in itertools.pairwise(range(len(weights))):
            assert checked[one] * weights[other] == pytest.approx(checked[other] * weights[one], rel=1e-9)


def nll(weights: Array, outputs: list[Array], labels: Array, are_logits: bool) -> float:
    """As a textbook has it: the mean of -log p(true class) over the rows."""
    fused = sum(weight * output for weight, output in zip(weights, outputs, strict=True))
    log_probabilities = log_softmax(fused, axis=1) if are_logits else np.log(fused)
    return float(-np.mean([row[label] for row, label in zip(log_probabilities, labels, strict=True)]))


def noisy_members(noise: tuple[float, ...], rows: int = 120, classes: int = 4, seed: int = 0) -> tuple[list[Array], Array]:
    """Logits that point at the label, each member with noise of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    truth = 3.0 * np.eye(classes)[labels]
    return [truth + scale * rng.standard_normal(truth.shape) for scale in noise], labels


def simplex(member_count: int, steps: int) -> list[Array]:
    """All weights in multiples of 1/steps that sum to one."""
    grids = itertools.product(range(steps + 1), repeat=member_count - 1)
    return [np.array([*head, steps - sum(head)]) / steps for head in grids if sum(head) <= steps]


CASES = pytest.mark.parametrize("noise", [(1.0, 3.0), (2.0, 2.0), (1.0, 8.0), (1.0, 2.0, 3.0), (4.0, 1.5, 1.5)])


class TestFit:
    @CASES
    @pytest.mark.parametrize("are_logits", [True, False])
    def test_no_point_of_a_grid_is_better(self, noise: tuple[float, ...], are_logits: bool):
        outputs, labels = noisy_members(noise)
        if not are_logits:
            outputs = [softmax(output, axis=1) for output in outputs]
        fit = fit_weights(outputs, labels, are_logits=are_logits, rows_sha256="f00")
        steps = 200 if len(noise) == 2 else 40
        best = min(simplex(len(noise), steps), key=lambda weights: nll(weights, outputs, labels, are_logits))
        assert fit.loss <= nll(best, outputs, labels, are_logits) + 1e-6
        assert np.abs(np.array(fit.weights) - best).max() < 2 / steps + 0.02

    @CASES
    @pytest.mark.parametrize("are_logits", [True, False])
    def test_what_it_says_is_so(self, noise: tuple[float, ...], are_logits: bool):
        outputs, labels = noisy_members(noise, seed=1)
        if not are_logits:
            outputs = [softmax(output, axis=1) for output in outputs]
        fit = fit_weights(outputs, labels, are_logits=are_logits, rows_sha256="f00")
        assert math.fsum(fit.weights) == pytest.approx(1, abs=1e-12)
        assert min(fit.weights) >= 0
        assert fit.loss == pytest.approx(nll(np.array(fit.weights), outputs, labels, are_logits), abs=1e-9)
        equal = np.full(len(noise), 1 / len(noise))
        assert fit.equal_weights_loss == pytest.approx(nll(equal, outputs, labels, are_logits), abs=1e-9)
        for one, member_loss in zip(np.eye(len(noise)), fit.member_loss, strict=True):
            assert member_loss == pytest.approx(nll(one, outputs, labels, are_logits), abs=1e-9)
        assert (fit.row_count, fit.rows_sha256) == (120, "f00")
        assert fit.describe() == (
            f"fitted on 120 rows: NLL {fit.loss:.4f} (equal weights {fit.equal_weights_loss:.4f}, "
            f"best member {min(fit.member_loss):.4f})"
        )

    @given(
        noise=st.lists(st.floats(0, 50), min_size=2, max_size=5),
        seed=st.integers(0, 1000),
        are_logits=st.booleans(),
        rows=st.integers(1, 30),
        scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    )
    @settings(max_examples=60, deadline=None)
    def test_never_worse_than_equal_weights_or_than_the_best_member(
        self, noise: list[float], seed: int, are_logits: bool, rows: int, scale: float
    ):
        outputs, labels = noisy_members(tuple(noise), rows=rows, seed=seed)
        outputs = [scale * output for output in outputs]
        if not are_logits:
            outputs = [softmax(output, axis=1) for output in outputs]
        fit = fit_weights(outputs, labels, are_logits=are_logits, rows_sha256="")
        assert fit.loss <= min(fit.equal_weights_loss, *fit.member_loss)
        assert math.fsum(fit.weights) == pytest.approx(1, abs=1e-9)
        assert min(fit.weights) >= 0

    def test_a_useless_member_gets_nothing(self):
        outputs, labels = noisy_members((0.1, 0.1))
        fit = fit_weights([outputs[0], -outputs[0]], labels, are_logits=True, rows_sha256="")
        assert fit.weights == (1.0, 0.0)

    def test_twins_may_share_as_they_like(self):
        outputs, labels = noisy_members((1.0,))
        fit = fit_weights([outputs[0]] * 3, labels, are_logits=True, rows_sha256="")
        assert fit.loss == pytest.approx(fit.equal_weights_loss)

    def test_members_order_does_not_matter(self):
        outputs, labels = noisy_members((1.0, 2.0, 3.0))
        fit = fit_weights(outputs, labels, are_logits=True, rows_sha256="")
        turned = fit_weights(outputs[::-1], labels, are_logits=True, rows_sha256="")
        assert turned.weights[::-1] == pytest.approx(fit.weights, abs=1e-3)

    def test_probability_zero_for_the_true_class(self):
        """One member is sure and wrong: the other must keep enough weight for a finite NLL."""
        sure = np.array([[1.0, 0.0], [1.0, 0.0]])
        unsure = np.array([[0.6, 0.4], [0.6, 0.4]])
        fit = fit_weights([sure, unsure], np.array([0, 1]), are_logits=False, rows_sha256="")
        assert fit.loss < 1
        assert fit.weights[1] > 0.5

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_outputs_that_are_not_finite(self, value: float):
        outputs, labels = noisy_members((1.0, 2.0))
        outputs[1][3, 0] = value
        with pytest.raises(FusionError, match="a member's output is not finite on the rows to fit on"):
            fit_weights(outputs, labels, are_logits=True, rows_sha256="")
