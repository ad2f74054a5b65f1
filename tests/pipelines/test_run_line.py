"""The whole line on real digits: fused, distilled, brought to 8 bits, judged, bundled; and a ranking within groups."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monograph.errors import ConfigError
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import load_graph, read_onnx
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.config import load_config
from monograph.pipelines.gate import Verdict
from monograph.pipelines.progress import Progress
from monograph.pipelines.records import read_record
from monograph.pipelines.report import Report, StudentSummary
from monograph.pipelines.run import RunResult, run_pipeline
from monograph.pipelines.run.measuring import groups_of, some_rows
from monograph.pipelines.run.shipping import check_shipping, why_not_bundled
from monograph.pipelines.run.step import Run
from monograph.pipelines.run.student import check_student, lacks_8_bits, student_files, teach_student
from monograph.pipelines.steps import open_workspace

LINE = """
name: line
data:
  source: py:monograph.models.data.digits:optical_digits
  split: {train: 600, validation: 300, test: 700}
models:
  mlp:
    source: py:monograph.models.students:mlp
    arguments: {input_shape: [1, 8, 8], width: 32}
    train: {epochs: 3, learning_rate: 0.01}
  wider:
    source: py:monograph.models.students:mlp
    arguments: {input_shape: [1, 8, 8], width: 48}
    train: {epochs: 3, learning_rate: 0.01}
distill:
  student: mlp
  student_arguments: {width: 16, dropout: 0.0}
  epochs: 10
  learning_rate: 0.02
  quantize: static
  quantize_loss_points: 20
gate:
  policy: {accuracy: {max_loss_points: 40}}
bundle: {licence: Apache-2.0}
measure:
  targets: [cpu, coreml]
  members_on: [cpu]
  rows: {coreml: 50}
  batch_sizes: [1]
  min_runs: 40
  min_seconds: 0
  max_seconds: 1
  baselines: []
  blocks: 2
"""
RANKING = """
name: ranking
data:
  source: {rows}
  split: {{train: 900, validation: 200, test: 400}}
  group: left
models:
  narrow:
    source: py:monograph.models.students:two_tower
    arguments: {{left_size: 20, right_size: 60, width: 2}}
    train: {{epochs: 3, learning_rate: 0.05}}
  wide:
    source: py:monograph.models.students:two_tower
    arguments: {{left_size: 20, right_size: 60, width: 8}}
    train: {{epochs: 3, learning_rate: 0.05}}
measure: {{batch_sizes: [1], min_runs: 40, min_seconds: 0, max_seconds: 1, baselines: [], blocks: 2}}
"""
ADAPTED = """
name: adapted
data:
  source: py:monograph.models.data.digits:optical_digits
  split: {train: 400, validation: 200, test: 300}
models:
  head:
    source: py:pretrained:network
    adapt: {method: head, epochs: 2}
  last:
    source: py:pretrained:network
    adapt: {method: last-layers, epochs: 2, learning_rate: 0.01}
measure: {batch_sizes: [1], min_runs: 40, min_seconds: 0, max_seconds: 1, baselines: [sessions, eager], blocks: 2}
"""
PRETRAINED = """
import torch
from monograph.models.students import mlp

def network():
    torch.manual_seed(7)  # the same weights whenever it is loaded, as those of a pretrained model are
    return mlp((1, 8, 8), width=24, dropout=0.0)
"""


def steps_in(folder: Path) -> dict[str, int]:
    return {step.name: step.stat().st_mtime_ns for step in (folder / "steps").iterdir()}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """The pipeline file, and its first run."""
    folder = tmp_path_factory.mktemp("line")
    path = folder / "line.yaml"
    path.write_text(LINE, encoding="utf-8")
    return path, run_pipeline(path, folder / "out", progress=Progress(quiet=True))


@pytest.mark.slow
def test_the_line_ends_with_a_bundle_of_the_8_bit_student(line: tuple[Path, RunResult]) -> None:
    _, result = line
    assert (result.outcome, result.exit_code) == ("pass", 0)
    assert result.student is not None
    assert result.bundle is not None
    assert (result.bundle / "model.onnx").read_bytes() == result.student.read_bytes()
    shipped = json.loads((result.bundle / "verdict.json").read_text(encoding="utf-8"))
    assert shipped["candidate"]["sha256"] == read_onnx(result.student).sha256
    assert result.student.name == "student.int8.onnx"
    on_coreml = {name.partition("@")[0] for name in result.measurements if name.endswith("@coreml")}
    assert on_coreml == {"fused", "student", "student.int8"}  # members are measured on cpu alone

    report = read_record(result.result, Report)
    assert {one.name: one.role for one in report.contenders if one.role == "student"} == {
        "student": "student",
        "student.int8": "student",
    }
    # The distillation and the measurement of the exported file count the same rows right.
    measured = result.measurements["student@cpu"].accuracy
    fused = result.measurements["fused@cpu"].accuracy
    assert report.student is not None
    assert measured is not None
    assert fused is not None
    assert report.student.retention == pytest.approx(measured.top1.estimate / fused.top1.estimate)
    assert {ratio.name for ratio in report.ratios} == {
        "fused / the sum of its members, each alone",
        "student / fused",
        "student.int8 / fused",
    }
    page = result.report.read_text(encoding="utf-8")
    for part in ('id="student"', 'id="gate"', 'id="bundle"', "monograph verify bundle"):
        assert part in page
    for address in (f"steps/{step}/report.html" for step in steps_in(result.folder) if step.startswith("distill")):
        assert address in page
        assert (result.folder / address).exists()
    record = (result.folder / "steps").glob("distill-*/distillation.json")
    assert json.loads(next(record).read_text(encoding="utf-8"))["onnx"] == "student.onnx"


@pytest.mark.slow
def test_a_resumed_run_does_nothing_twice(line: tuple[Path, RunResult]) -> None:
    path, result = line
    before = steps_in(result.folder)
    assert run_pipeline(path, result.folder, progress=Progress(quiet=True)) == result
    assert steps_in(result.folder) == before


@pytest.mark.slow
def test_a_verdict_that_blocks_is_written_and_becomes_the_exit_code(
    line: tuple[Path, RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    path, first = line
    verdict = json.loads((first.folder / "verdict.json").read_text(encoding="utf-8"))
    (loss,) = (check["estimate"] for check in verdict["checks"] if check["name"] == "accuracy.max_loss_points")
    limits = {1: "{size: {max_ratio: 0.001}}", 3: f"{{accuracy: {{max_loss_points: {max(loss, 0.0)}}}}}"}
    for exit_code, policy in limits.items():
        run_pipeline(path, first.folder, progress=Progress(quiet=True))
        assert (first.folder / "bundle").exists()
        code = _exit_code(["run", str(path), "--out", str(first.folder), "--set", f"gate.policy={policy}"])
        assert code == exit_code
        told = capsys.readouterr()
        assert "nothing was bundled" in told.out.lower()
        outcome = json.loads((first.folder / "verdict.json").read_text(encoding="utf-8"))["outcome"]
        assert outcome == {1: "fail", 3: "inconclusive"}[exit_code]
        assert not (first.folder / "bundle").exists()  # that of the run before would be taken for this one's
        assert "Nothing was bundled" in (first.folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_8_bits_that_lose_too_much_leave_the_float_student_and_ship_nothing(line: tuple[Path, RunResult]) -> None:
    path, _ = line
    result = run_pipeline(path, line[1].folder, progress=Progress(quiet=True))
    config, _ = load_config(path)
    assert config.distill is not None
    # No file may ask for less than no loss, so that even the best 8 bits lose too much here.
    choice = config.distill.model_copy(update={"quantize_loss_points": -100.0})
    folders = {name: next((result.folder / "steps").glob(f"{name}-*")) for name in ("fuse", "data")}
    with open_workspace(result.folder, Progress(quiet=True)) as workspace:
        run = Run(config.model_copy(update={"distill": choice}), workspace)
        folder = teach_student(run, folders["fuse"], folders["data"])
    assert list(student_files(folder)) == ["student"]
    assert lacks_8_bits(choice, folder)
    told = why_not_bundled(read_record(result.folder / "verdict.json", Verdict), lacks_8_bits=True)
    assert told is not None
    assert "8 bits were asked for" in told
    summary = read_record(folder / "student.json", StudentSummary)
    assert any("no 8-bit student was written" in note for note in summary.notes)


@pytest.mark.slow
def test_a_ranking_is_scored_within_its_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 20, 1500), rng.integers(0, 60, 1500)
    taste = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 60))
    np.savez(tmp_path / "pairs.npz", left=left, right=right, y=(taste[left, right] > 0).astype(np.int64))
    path = tmp_path / "ranking.yaml"
    path.write_text(RANKING.format(rows=tmp_path / "pairs.npz"), encoding="utf-8")
    result = run_pipeline(path, tmp_path / "out", progress=Progress(quiet=True))

    card = result.measurements["fused@cpu"].scorecard
    assert card is not None
    assert card.task == "ranking"
    assert "ndcg@10" in card.scores  # which there is of groups alone
    report = read_record(result.result, Report)
    gains = {one.metric: one for one in report.ranking}
    assert gains["auc"].fused.estimate == pytest.approx(card.scores["auc"].estimate)
    best = gains["auc"].members[gains["auc"].best_member].estimate
    assert gains["auc"].fused.estimate is not None
    assert best is not None
    assert gains["auc"].gain.estimate == pytest.approx(gains["auc"].fused.estimate - best)
    page = result.report.read_text(encoding="utf-8")
    assert "One graph of 2 members reaches NDCG@10" in page
    assert 'id="ranking"' in page


@pytest.mark.slow
def test_adapted_members_are_fused_on_the_trunk_that_they_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pretrained.py").write_text(PRETRAINED, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "adapted.yaml"
    path.write_text(ADAPTED, encoding="utf-8")
    result = run_pipeline(path, tmp_path / "out", progress=Progress(quiet=True))

    # No PyTorch eager beside them: the heads that were adapted are in no source.
    assert set(result.measurements) == {"head@cpu", "last@cpu", "fused@cpu", "2 sessions + numpy@cpu"}
    top1 = {name: one.accuracy.top1.estimate for name, one in result.measurements.items() if one.accuracy}
    assert top1["fused@cpu"] == top1["2 sessions + numpy@cpu"]
    products = [node.op_type in ("Gemm", "MatMul") for node in load_graph(result.fused).graph]
    assert sum(products) < 2 * 3  # the first of three layers is the same in both
    report = read_record(result.result, Report)
    assert [(one.member, one.method) for one in report.adaptations] == [("head", "head"), ("last", "last-layers")]
    page = result.report.read_text(encoding="utf-8")
    for one in report.adaptations:
        assert one.page in page
        assert (result.folder / one.page).exists()
        assert any("frozen" in row[0] for row in one.grids[0].rows)  # the baselines on frozen features stand beside it


def test_rows_of_one_value_are_a_group_whatever_its_shape() -> None:
    rows = Rows({"user": np.array([[7], [3], [7]]), "item": np.arange(3)}, np.array([1, 0, 1]))
    groups = groups_of(rows, "user")
    assert groups is not None
    assert groups.tolist() == [1, 0, 1]
    assert groups_of(rows, None) is None


def test_some_rows_are_drawn_once_and_told() -> None:
    rows = Rows({"x": np.arange(10)}, np.arange(10))
    drawn = some_rows(rows, 4)
    assert drawn.inputs["x"].tolist() == some_rows(rows, 4).inputs["x"].tolist()
    assert drawn.assumed == ("4 of the 10 test rows were taken, drawn at random with seed 0",)
    assert some_rows(rows, None) is rows is some_rows(rows, 10)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.loss=kdd", "unknown loss"),
        ("distill.loss_options={temprature: 2}", "temprature"),
        ("distill.augment=[spin]", "unknown augmentation"),
        ("distill.student=separable_cnv", "choose from mlp"),
    ],
)
def test_a_student_that_cannot_be_taught_is_refused_before_anything_runs(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "line.yaml"
    path.write_text(LINE, encoding="utf-8")
    config, _ = load_config(path, [override])
    assert config.distill is not None
    with pytest.raises(ConfigError, match=message):
        check_student(config.distill)


def test_a_target_with_a_form_of_its_own_takes_no_8_bit_student(tmp_path: Path) -> None:
    path = tmp_path / "line.yaml"
    path.write_text(LINE, encoding="utf-8")
    config, _ = load_config(path, ["measure.targets=[cpu, qnn-htp]", "measure.rows={}", "bundle.targets=[cpu, qnn-htp]"])
    with pytest.raises(ConfigError, match="made of the float student"):
        check_shipping(config)
    config, _ = load_config(
        path, ["measure.targets=[cpu, qnn-htp]", "measure.rows={}", "bundle.targets=[cpu, qnn-htp]", "distill.quantize=null"]
    )
    check_shipping(config)


def test_a_group_needs_scores_of_an_input(tmp_path: Path) -> None:
    path = tmp_path / "line.yaml"
    path.write_text(LINE, encoding="utf-8")
    with pytest.raises(ConfigError, match="mlp takes pixels"):
        run_pipeline(path, tmp_path / "out", ["data.group=user"], progress=Progress(quiet=True))
    with pytest.raises(ConfigError, match="mlp gives logits"):
        run_pipeline(path, tmp_path / "out", ["data.group=pixels"], progress=Progress(quiet=True))
