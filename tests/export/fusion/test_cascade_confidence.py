"""Thresholds whose allowed loss holds on new rows, over populations whose true loss is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from monograph.errors import FusionError
from monograph.export.fusion.cascade import GATES, CascadeFit, fit_cascade
from monograph.export.fusion.cascade.fit import answering_member, choose_thresholds
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session
from monograph.runtime.statistics import paired_loss_bound

Array = npt.NDArray[Any]
GATE = GATES["max-probability"]


def population(row_count: int, seed: int, stages: int = 2) -> tuple[list[Array], Array]:
    """Members that are right as often as they say, each surer than the one before, all of the true class 1."""
    rng = np.random.default_rng(seed)
    ease = rng.beta(4, 1, row_count)
    members = []
    for stage in range(stages):
        sure = 0.5 + 0.5 * ease ** (1 / (1 + 3 * stage))
        right = rng.random(row_count) < sure
        members.append(np.stack([np.where(right, 1 - sure, sure), np.where(right, sure, 1 - sure)], axis=1))
    return members, np.ones(row_count, np.int64)


def loss_points(members: list[Array], labels: Array, thresholds: tuple[float, ...]) -> float:
    right = np.stack([member.argmax(1) == labels for member in members])
    answers = right[answering_member(members, thresholds, GATE), np.arange(len(labels))]
    return 100 * float(right[-1].mean() - answers.mean())


@pytest.mark.parametrize("stages", [2, 3])
def test_the_promise_is_kept_and_the_loss_seen_on_the_rows_is_not(stages: int) -> None:
    truth = population(50_000, seed=999, stages=stages)
    broken = {0.0: 0, 0.95: 0}
    for seed in range(80):
        rows = population(1500, seed=seed, stages=stages)
        for confidence in broken:
            broken[confidence] += loss_points(*truth, choose_thresholds(*rows, GATE, 1.0, confidence)) > 1.0
    assert broken[0.95] <= 9, "one in twenty, with the room that 80 draws need"
    assert broken[0.0] > 25


def test_a_promise_costs_hard_rows_and_stays_within_its_bound() -> None:
    members, labels = population(2000, seed=3)
    seen, promised = (choose_thresholds(members, labels, GATE, 1.0, confidence) for confidence in (0.0, 0.95))
    assert seen[0] < promised[0] < 1
    right = [member.argmax(1) == labels for member in members]
    easy = GATE.score(members[0]) >= promised[0]
    lost, gained = (easy & right[1] & ~right[0]).sum(), (easy & right[0] & ~right[1]).sum()
    assert paired_loss_bound(int(lost), int(gained), 2000) <= 0.01
    # Every threshold above passes too; the next below does not.
    below = np.sort(GATE.score(members[0])[~easy])[-1]
    easier = GATE.score(members[0]) >= below
    lost, gained = (easier & right[1] & ~right[0]).sum(), (easier & right[0] & ~right[1]).sum()
    assert paired_loss_bound(int(lost), int(gained), 2000) > 0.01


def test_more_confidence_and_less_allowed_loss_send_more_rows_on() -> None:
    members, labels = population(3000, seed=5)
    by_confidence = [choose_thresholds(members, labels, GATE, 1.0, confidence)[0] for confidence in (0.5, 0.8, 0.95, 0.99)]
    assert by_confidence == sorted(by_confidence)
    by_drop = [choose_thresholds(members, labels, GATE, drop, 0.95)[0] for drop in (5.0, 2.0, 1.0, 0.5)]
    assert by_drop == sorted(by_drop)
    assert choose_thresholds(members, labels, GATE, 100.0, 0.95)[0] == pytest.approx(GATE.score(members[0]).min())


def test_equal_scores_cannot_be_told_apart() -> None:
    coarse = np.array([[0.4, 0.6]] * 50 + [[0.1, 0.9]] * 50)
    sure = np.array([[0.0, 1.0]] * 100)
    labels = np.ones(100, np.int64)
    labels[[0, 60]] = 0
    large = sure.copy()
    large[[0, 60]] = (1.0, 0.0)
    assert choose_thresholds([coarse, large], labels, GATE, 1.0) == (0.75,)
    assert choose_thresholds([coarse, large], labels, GATE, 0.5) == (1.01,)


class TestFit:
    @pytest.fixture
    def files(self, write_linear: Callable[..., OnnxFile]) -> list[OnnxFile]:
        return [write_linear("small", seed=1), write_linear("large", seed=2)]

    def fit(self, files: list[OnnxFile], row_count: int, **choices: Any) -> CascadeFit:
        x = np.random.default_rng(0).standard_normal((row_count, 4), dtype=np.float32)
        (output,) = open_session(files[1].path)({"x": x}).values()
        rows = Rows({"x": x}, output.argmax(1))
        return fit_cascade(files, [rows, rows], **choices)

    def test_enough_rows(self, files: list[OnnxFile]) -> None:
        fit = self.fit(files, 600, max_drop=3.0)
        assert fit.is_promised
        assert 0 < fit.loss_bound <= 3.0
        assert fit.unpromised_share < fit.shares[1] < 1
        assert "at 0.95 confidence new rows lose at most" in fit.describe()
        assert f"(allowed 3; with no such promise {fit.unpromised_share:.1%} of rows would go on)" in fit.describe()

    def test_too_few_rows(self, files: list[OnnxFile]) -> None:
        fit = self.fit(files, 300, max_drop=0.5)
        assert not fit.is_promised
        assert fit.thresholds == self.fit(files, 300, max_drop=0.5, confidence=0).thresholds
        assert fit.loss_bound > 0.89
        assert "300 rows can promise no less than 0.89 points, so the allowed loss of 0.5 points holds for" in fit.describe()
        assert fit.describe().endswith("give 539 or more")
        assert self.fit(files, 539, max_drop=0.5).is_promised
        assert "no number of rows can promise a loss of 0" in self.fit(files, 300, max_drop=0.0).describe()

    def test_none_asked_for(self, files: list[OnnxFile]) -> None:
        fit = self.fit(files, 600, max_drop=3.0, confidence=0)
        assert (fit.is_promised, fit.shares[1]) == (False, fit.unpromised_share)
        assert fit.describe().endswith(f"its bound at 0.95 confidence is {fit.loss_bound:.2g}")

    @pytest.mark.parametrize("confidence", [1.0, 0.3, -0.95, 95.0, float("nan")])
    def test_refused(self, files: list[OnnxFile], confidence: float) -> None:
        with pytest.raises(FusionError, match=r"is no confidence: give 0\.95 for example, or 0 to have none"):
            self.fit(files, 30, confidence=confidence)
