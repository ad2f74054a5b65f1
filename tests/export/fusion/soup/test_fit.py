"""Greedy soups: which members are taken, and what is told of the gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from monograph.errors import DataError, FusionError
from monograph.export.fusion.soup import Souped, plan_soup
from monograph.export.fusion.soup.fit import SoupFit
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
MakeSoup = Callable[..., Souped]
WriteMlp = Callable[[str, Mapping[str, Array]], OnnxFile]


def blurred(weights: Mapping[str, Array], scale: float, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        name: (array + scale * array.std() * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in weights.items()
    }


def fitted(files: list[OnnxFile], rows: Rows, **choices: Any) -> SoupFit:
    fit = plan_soup(files, rows=rows, greedy=True, max_barrier=100, **choices).fit
    assert fit is not None
    return fit


@pytest.fixture
def members(write_mlp: WriteMlp, trained_mlps: Mapping[str, Mapping[str, Array]]) -> Callable[..., list[OnnxFile]]:
    def write(*kinds: str) -> list[OnnxFile]:
        made = {
            "left": trained_mlps["left"],
            "right": trained_mlps["right"],
            "damaged": blurred(trained_mlps["left"], 2.0),
            "stranger": trained_mlps["stranger"],
        }
        return [write_mlp(kind, made[kind]) for kind in kinds]

    return write


def test_members_that_help_are_taken_and_others_are_not(
    members: Callable[..., list[OnnxFile]], make_soup: MakeSoup, digits: Mapping[str, Rows]
):
    rows = digits["validation"]
    soup = make_soup(members("damaged", "left", "right", "stranger"), rows=rows, greedy=True, max_barrier=100)
    fit = soup.plan.fit
    assert fit is not None
    assert fit.weights == (0, 0.5, 0.5, 0)
    assert [step.member for step in fit.steps][-1] == "damaged"  # from the best to the worst
    assert {step.member for step in fit.steps if step.added} == {"left", "right"}
    assert fit.accuracy >= max(fit.member_accuracy)
    assert fit.accuracy > fit.uniform_accuracy
    (logits,) = open_session(soup.file.path)(rows.inputs).values()
    assert fit.accuracy == pytest.approx(float((logits.argmax(1) == rows.labels).mean()))
    assert fit.rows_sha256 == rows.sha256()


def test_the_gain_is_told_on_rows_that_the_choice_has_not_seen(
    members: Callable[..., list[OnnxFile]], digits: Mapping[str, Rows]
):
    fit = fitted(members("left", "right"), digits["validation"])
    gain = fit.gain
    assert gain is not None
    assert gain.best_member == ("left", "right")[int(np.argmax(fit.member_accuracy))]
    assert gain.low <= gain.amount <= gain.high
    assert "held out, " in fit.describe()
    assert "likely to be luck" in fit.describe()
    assert fitted(members("left", "right"), digits["validation"].take(slice(0, 19))).gain is None


def test_choosing_among_blurred_copies_gains_nothing_that_is_not_called_luck(
    write_mlp: WriteMlp, trained_mlps: Mapping[str, Mapping[str, Array]], digits: Mapping[str, Rows]
):
    copies = [write_mlp(f"copy{seed}", blurred(trained_mlps["left"], 0.3, seed)) for seed in range(4)]
    rows = digits["validation"].take(slice(0, 100))
    fit = fitted(copies, replace(rows, labels=np.random.default_rng(0).permutation(rows.required_labels())))
    assert fit.accuracy >= max(fit.member_accuracy)  # on the rows fitted on there is always a gain
    assert fit.gain is not None
    assert fit.gain.low <= 0


def test_of_equal_accuracies_the_lower_loss_decides(
    write_mlp: WriteMlp, trained_mlps: Mapping[str, Mapping[str, Array]], digits: Mapping[str, Rows]
):
    """Logits twice as large have the same best class everywhere, and another loss."""
    left = dict(trained_mlps["left"])
    larger = left | {"w2": 2 * left["w2"], "b2": 2 * left["b2"]}
    fit = fitted([write_mlp("plain", left), write_mlp("larger", larger)], digits["validation"])
    assert fit.member_accuracy[0] == fit.member_accuracy[1]
    best = int(np.argmin(fit.member_nll))
    assert fit.steps[0].member == ("plain", "larger")[best]
    assert fit.steps[1].added == (fit.steps[1].nll <= fit.member_nll[best])


def test_what_has_no_classes_is_not_fitted(write_linear: Callable[..., OnnxFile]):
    spec = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("logits", "float32", ("batch", 3))
    contract = Contract((spec[0],), (spec[1],), Kind.REGRESSION)
    files = [write_linear(name, contract=contract) for name in "ab"]
    rows = Rows({"x": np.zeros((30, 4), np.float32)}, np.zeros(30, np.int64))
    with pytest.raises(FusionError, match="a gives regression: a greedy soup is fitted for classifiers only, give --weights"):
        plan_soup(files, rows=rows, greedy=True)
    (angle,) = plan_soup(files, rows=rows).connection.angles
    assert angle.cosine == pytest.approx(1)


def test_refused(members: Callable[..., list[OnnxFile]], digits: Mapping[str, Rows]):
    files = members("left", "right")
    with pytest.raises(FusionError, match="a greedy soup is chosen on labelled validation rows"):
        plan_soup(files, greedy=True)
    with pytest.raises(DataError, match="no labels, and this needs them"):
        plan_soup(files, rows=replace(digits["validation"], labels=None), greedy=True)
    with pytest.raises(FusionError, match="do not share an initialisation"):
        plan_soup([*files, *members("stranger")], rows=digits["validation"], greedy=True)
