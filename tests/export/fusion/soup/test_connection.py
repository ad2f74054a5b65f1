"""Whether members share an initialisation, on networks that were trained on real digits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from monograph.errors import DataError, FusionError
from monograph.export.fusion.fuse import FUSION_KEY
from monograph.export.fusion.soup import Souped, plan_soup
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
MakeSoup = Callable[..., Souped]
WriteMlp = Callable[[str, Mapping[str, Array]], OnnxFile]


def accuracy(file: OnnxFile, rows: Rows) -> float:
    (logits,) = open_session(file.path)(rows.inputs).values()
    return float((logits.argmax(1) == rows.labels).mean())


def test_fine_tuned_from_one_checkpoint(mlps: Mapping[str, OnnxFile], make_soup: MakeSoup, digits: Mapping[str, Rows]):
    members = [mlps["left"], mlps["right"]]
    soup = make_soup(members, rows=digits["validation"])
    (line,) = soup.plan.connection.lines
    assert line.barrier_points < 1
    ends = [accuracy(member, digits["validation"]) for member in members]
    assert [line.accuracies[0], line.accuracies[-1]] == pytest.approx(ends)
    assert line.accuracies[2] == pytest.approx(accuracy(soup.file, digits["validation"]))
    assert accuracy(soup.file, digits["validation"]) > np.mean(ends) - 0.01
    record = json.loads(soup.file.metadata[FUSION_KEY])
    assert record["connection"]["lines"][0]["barrier_points"] == pytest.approx(line.barrier_points)


def test_of_two_initialisations(mlps: Mapping[str, OnnxFile], make_soup: MakeSoup, digits: Mapping[str, Rows]):
    members = [mlps["left"], mlps["stranger"]]
    with pytest.raises(FusionError, match=r"left and stranger do not share an initialisation: .* a barrier of \d\d\.\d points"):
        make_soup(members, rows=digits["validation"])
    soup = make_soup(members, rows=digits["validation"], max_barrier=100)
    (line,) = soup.plan.connection.lines
    assert line.barrier_points > 10
    assert line.barrier_nats > 0.1


def test_the_barrier_is_the_worst_point_below_the_straight_line_between_the_ends(
    mlps: Mapping[str, OnnxFile], digits: Mapping[str, Rows]
):
    plan = plan_soup([mlps["left"], mlps["stranger"]], rows=digits["validation"], max_barrier=100)
    (line,) = plan.connection.lines
    accuracies = 100 * np.array(line.accuracies)
    chord = np.interp([0, 0.25, 0.5, 0.75, 1], [0, 1], [accuracies[0], accuracies[-1]])
    assert line.barrier_points == pytest.approx(max(chord - accuracies))


def test_hidden_units_in_another_order(
    write_mlp: WriteMlp,
    trained_mlps: Mapping[str, Mapping[str, Array]],
    mlps: Mapping[str, OnnxFile],
    digits: Mapping[str, Rows],
):
    """The same function, and yet nothing between the two weights: what is averaged must stand in the same place."""
    left = trained_mlps["left"]
    order = np.random.default_rng(0).permutation(32)
    turned = {"w1": left["w1"][:, order], "b1": left["b1"][order], "w2": left["w2"][order], "b2": left["b2"]}
    other = write_mlp("turned", turned)
    assert accuracy(other, digits["validation"]) == accuracy(mlps["left"], digits["validation"])
    with pytest.raises(FusionError, match="left and turned do not share an initialisation"):
        plan_soup([mlps["left"], other], rows=digits["validation"])


def test_without_labelled_rows_it_is_estimated(mlps: Mapping[str, OnnxFile], digits: Mapping[str, Rows]):
    for rows in (None, replace(digits["validation"], labels=None)):
        plan = plan_soup([mlps["left"], mlps["right"]], rows=rows)
        (angle,) = plan.connection.angles
        assert angle.cosine > 0.9
        assert "fits one initialisation (an estimate: no labelled rows)" in plan.describe()
        with pytest.raises(FusionError, match="left and stranger do not seem to share an initialisation: the cosine"):
            plan_soup([mlps["left"], mlps["stranger"]], rows=rows)
    (angle,) = plan_soup([mlps["left"], mlps["stranger"]], max_barrier=100).connection.angles
    assert abs(angle.cosine) < 0.2


def test_a_member_without_weight_is_not_asked(mlps: Mapping[str, OnnxFile], digits: Mapping[str, Rows]):
    members = [mlps["stranger"], mlps["left"], mlps["right"]]
    plan = plan_soup(members, weights=(0, 0.5, 0.5), rows=digits["validation"])
    assert [(line.first, line.second) for line in plan.connection.lines] == [("left", "right")]


def test_a_barrier_that_may_be_chance_is_told_and_not_refused(
    mlps: Mapping[str, OnnxFile], trained_mlps: Mapping[str, Mapping[str, Array]], digits: Mapping[str, Rows]
):
    rows, (left, stranger) = digits["validation"], (trained_mlps["left"], trained_mlps["stranger"])

    def is_right(share: float) -> Array:
        w = {name: (1 - share) * left[name] + share * stranger[name] for name in left}
        hidden = np.maximum(rows.inputs["x"] @ w["w1"] + w["b1"], 0)
        return np.asarray((hidden @ w["w2"] + w["b2"]).argmax(1) == rows.labels)

    right = np.stack([is_right(share) for share in (0, 0.25, 0.5, 0.75, 1)])
    easy = np.flatnonzero(right.all(0))
    hard = np.flatnonzero(right[0] & right[-1] & ~right[2])
    members = [mlps["left"], mlps["stranger"]]
    plan = plan_soup(members, rows=rows.take(np.concatenate([hard[:1], easy[:11]])))
    (line,) = plan.connection.lines
    assert line.barrier_points == pytest.approx(100 / 12)
    assert any("which on 12 rows may be chance: give more labelled rows to know" in note for note in plan.notes)
    with pytest.raises(FusionError, match="do not share an initialisation"):
        plan_soup(members, rows=rows.take(np.concatenate([hard[:20], easy[:100]])))


@pytest.mark.parametrize("barrier", [-1, 101, float("nan"), float("inf")])
def test_no_number_of_points(mlps: Mapping[str, OnnxFile], barrier: float):
    with pytest.raises(FusionError, match="is no number of points: give one from 0 to 100"):
        plan_soup([mlps["left"], mlps["right"]], max_barrier=barrier)


def test_labels_of_other_classes(mlps: Mapping[str, OnnxFile], digits: Mapping[str, Rows]):
    rows = replace(digits["validation"], labels=digits["validation"].required_labels() + 1)
    with pytest.raises(DataError, match="labels run from 1 to 10, but left has 10 classes"):
        plan_soup([mlps["left"], mlps["right"]], rows=rows)
