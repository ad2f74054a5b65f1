"""The study of three classifiers of digits, as a whole and through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monograph.errors import ConfigError, DataError
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import mark_seen, seen
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.data import DataSpec
from monograph.pipelines.interop import Interop, interop_models
from monograph.pipelines.interop.distillation import _mean_change
from monograph.pipelines.interop.result import REPORT_FILE, RESULT_FILE, Change
from monograph.pipelines.interop.taps import ask
from monograph.pipelines.records import read_record

from .conftest import Trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(trained: Trained, folder: Path) -> Interop:
    return interop_models(trained.models, trained.data, folder, quick=True, on=None)


def test_pairs_and_the_whole_are_fused_without_running_a_model_for_them(study: Interop) -> None:
    assert [len(one.members) for one in study.fusions] == [2, 2, 2, 3]
    for one in study.fusions:
        assert sum(one.weights) == pytest.approx(1)
        assert one.gain is not None
        assert one.accuracy is not None
        assert one.score is not None
        assert one.score.estimate == pytest.approx(one.accuracy.top1.estimate)
        assert one.gain.low <= one.gain.amount <= one.gain.high
        best = next(each.accuracy for each in study.subjects if each.name == one.gain.over)
        assert best is not None
        assert one.accuracy.top1.estimate - best.top1.estimate == pytest.approx(one.gain.amount / 100)


def test_diversity_is_that_of_the_counts(study: Interop) -> None:
    by_name = {one.name: one for one in study.subjects}
    for one in study.fusions[:3]:
        assert one.diversity is not None
        scores, count = one.diversity.scores, study.row_count
        assert scores["disagreement"].estimate == pytest.approx((one.diversity.only_first + one.diversity.only_second) / count)
        oracle, double = scores["oracle accuracy"].estimate, scores["double fault"].estimate
        assert oracle is not None
        assert double is not None
        assert oracle + double == pytest.approx(1)
        first = by_name[one.members[0]].accuracy
        assert first is not None
        assert oracle >= first.top1.estimate


def test_every_part_of_the_study_has_its_figures(study: Interop) -> None:
    assert all(one.fits for one in study.contacts)
    for one in study.transfers:
        assert one.probe is not None
        assert one.probe.estimate is not None
        assert one.probe.estimate > 0.5
        assert one.few_shot is not None
        assert list(one.few_shot) == [8]
        assert one.leep is not None
        assert one.leep < 0
    assert len(study.likenesses) == 3
    assert all(-1 <= value <= 1 for one in study.likenesses for row in one.cka for value in row if value is not None)
    assert len(study.stitches) == 6
    assert all(one.is_estimate and one.score is None and one.agreement is not None for one in study.lessons)
    assert any("estimated" in note for note in study.notes)
    assert all(not one.fits and one.reason for one in study.soups)


def test_advice_names_a_command_for_what_is_to_be_done(study: Interop) -> None:
    assert study.advice
    shown = [one.is_shown for one in study.advice]
    assert shown == sorted(shown, reverse=True)
    assert all(one.reason for one in study.advice)
    assert any(one.command.startswith("monograph ") for one in study.advice)


def test_the_record_can_be_read_and_the_page_is_whole(study: Interop, folder: Path) -> None:
    assert read_record(folder / RESULT_FILE, Interop) == study
    page = (folder / REPORT_FILE).read_text(encoding="utf-8")
    assert page.index('id="fusion"') < page.index('id="advice"')
    assert page.count("<svg") >= 2 * (4 + 3 + 1)
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_second_study_reads_what_the_first_one_stored(
    study: Interop, trained: Trained, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was run again")

    monkeypatch.setattr("monograph.pipelines.interop.taps.run_all_rows", refuse)
    again = interop_models(trained.models, trained.data, folder, quick=True, on=None)
    assert again.fusions == study.fusions
    assert again.advice == study.advice


def test_inner_tensors_are_those_that_were_named(trained: Trained, tmp_path: Path) -> None:
    file = read_onnx(Path(trained.models[1]))
    with DataSpec(trained.data).open(file.contract, None) as rows:
        given = ask(file, rows, "rows", tmp_path)
        last = list(given.parts)[-1]
        named = ask(file, rows, "rows", tmp_path, [last])
        assert list(named.parts) == [last]
        assert given.features is not None
        assert named.features is not None
        np.testing.assert_array_equal(given.features, named.features)
        with pytest.raises(ConfigError, match="computes no tensor 'nothing'"):
            ask(file, rows, "rows", tmp_path, ["nothing"])


@pytest.mark.parametrize(("rows", "reason"), [(slice(0, 20), "not enough evidence"), (None, "one class")])
def test_rows_of_which_nothing_can_be_told_are_refused(trained: Trained, tmp_path: Path, rows: slice | None, reason: str) -> None:
    table = np.load(trained.data)
    kept = rows if rows is not None else table["y"] == 3
    np.savez(tmp_path / "few.npz", x=table["x"][kept], y=table["y"][kept])
    with pytest.raises(DataError, match=reason):
        interop_models(trained.models[:2], str(tmp_path / "few.npz"), tmp_path / "out", quick=True, on=None)


def test_one_model_is_not_enough(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes two or more"):
        interop_models(trained.models[:1], trained.data, tmp_path, quick=True, on=None)


def test_what_is_wrong_for_all_models_is_said_once(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        interop_models(trained.models, str(tmp_path / "none.npz"), tmp_path / "out", quick=True, on=None)
    assert str(caught.value).count("no such file") == 1


def test_a_model_of_another_task_is_told_and_has_no_figures(trained: Trained, tmp_path: Path) -> None:
    from monograph.pipelines.export import export_model

    other = tmp_path / "numbers.onnx"
    export_model(trained.models[0], other, kind="regression")
    study = interop_models([*trained.models[:2], str(other)], trained.data, tmp_path / "out", quick=True, on=None)
    assert [one.fits for one in study.contacts] == [True, False, False]
    assert all(one.reason for one in study.contacts if not one.fits)
    assert len(study.fusions) == 1
    assert study.subjects[2].accuracy is None
    assert "models of one task" in study.subjects[2].reason


def test_a_student_is_set_beside_its_plain_training(trained: Trained, folder: Path, study: Interop) -> None:
    taught = interop_models(trained.models[1:], trained.data, folder, steps=12, students=["mlp"], on=None)
    lessons = [one for one in taught.lessons if not one.reason]
    assert {"wide", "conv"} <= {one.teacher for one in lessons} <= {"wide", "conv", "wide + conv"}
    for one in lessons:
        assert not one.is_estimate
        assert one.steps == 12
        assert one.gain is not None
        assert one.score is not None
        assert one.score.estimate is not None
        assert one.control is not None
        assert one.control.estimate is not None
        assert one.gain.amount == pytest.approx(100 * (one.score.estimate - one.control.estimate))
    assert any("cannot be trained" in one.reason or "not trained" in one.reason for one in taught.lessons)


def test_the_gain_of_a_lesson_has_room_for_other_trainings() -> None:
    alike = [Change(1.0, 0.5, 1.75, "labels")] * 3
    assert _mean_change(alike) == Change(1.0, 0.5, 1.75, "labels")
    spread = [Change(amount, amount - 0.5, amount + 0.5, "labels") for amount in (0.0, 1.0, 2.0)]
    told = _mean_change(spread)
    room = np.hypot(0.5, 4.302653 / np.sqrt(3))  # Student's t of two degrees of freedom, a spread of 1
    assert (told.amount, told.low, told.high) == pytest.approx((1.0, 1 - room, 1 + room), rel=1e-5)


def test_lessons_that_are_done_are_not_taught_again(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def studied(steps: int) -> Interop:
        return interop_models(trained.models[1:], trained.data, tmp_path, steps=steps, students=["mlp"], on=None)

    first = studied(12)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a student was trained again")

    monkeypatch.setattr("monograph.pipelines.interop.distillation.train", refuse)
    assert studied(12).lessons == first.lessons
    for task in (tmp_path / "tasks").glob("lesson-*.json"):
        task.unlink()  # as if it had been stopped between a training and its record
    assert studied(12).lessons == first.lessons
    with pytest.raises(AssertionError, match="trained again"):
        studied(24)


def test_networks_by_their_factories_learn_from_one_another(trained: Trained, tmp_path: Path) -> None:
    sources = [f"py:monograph.models.students:{name}" for name in ("mlp", "conv")]
    arguments = {source: {"input_shape": [1, 8, 8], "width": 6} for source in sources}
    study = interop_models(sources, trained.data, tmp_path, steps=12, students=["mlp"], arguments=arguments, on=None)
    told = {(one.teacher, one.student) for one in study.lessons if not one.reason}
    assert {("mlp", "conv"), ("conv", "mlp")} <= told
    assert {("mlp", "new mlp"), ("conv", "new mlp")} <= told
    assert all(one.student_macs for one in study.lessons if not one.reason)


def test_other_layers_are_other_figures(trained: Trained, folder: Path, study: Interop) -> None:
    first = {one.model: one for one in study.transfers}
    wide = next(one for one in study.subjects if one.name == "wide")
    layers = {"wide": [wide.parts[0]]}
    other = interop_models(trained.models, trained.data, folder, quick=True, on=None, layers=layers)
    assert next(one for one in other.transfers if one.model == "wide").layer == wide.parts[0] != first["wide"].layer
    with pytest.raises(ConfigError, match="'broad', which is no model"):
        interop_models(trained.models, trained.data, folder, quick=True, on=None, layers={"broad": ["x"]})


def test_rows_that_a_model_has_seen_are_told(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "seen.onnx"
    copy.write_bytes(Path(trained.models[2]).read_bytes())
    file = read_onnx(copy)
    rows = DataSpec(trained.data).load(file.contract, None, needs_labels=True)
    mark_seen(copy, seen("training", rows.take(slice(0, 40))))
    study = interop_models([trained.models[0], str(copy)], trained.data, tmp_path / "out", quick=True, on=None)
    assert [one.seen_count for one in study.subjects] == [0, 40]
    assert any("seen says that it has seen 40 of these rows" in note for note in study.notes)


def test_fused_graphs_are_timed(trained: Trained, tmp_path: Path) -> None:
    study = interop_models(trained.models[:2], trained.data, tmp_path, quick=True)
    assert study.target == "cpu"
    (fusion,) = study.fusions
    assert fusion.latency_ms is not None
    assert fusion.latency_ms > 0
    assert all(one.latency_ms for one in study.subjects)


def test_the_command_prints_the_record(
    trained: Trained, folder: Path, study: Interop, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["interop", *trained.models, "--data", trained.data, "-o", str(folder), "--quick", "--on", ""]
    assert _exit_code([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["row_count"] == study.row_count
    assert _exit_code(words) == 0
    assert "fusions, held out" in capsys.readouterr().out
    assert _exit_code(["interop", *trained.models]) == 2
