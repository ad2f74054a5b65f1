"""A cascade in stages gives what the cascade gives, runs later stages on hard rows alone, and goes where no If goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from monograph.errors import ConfigError, FusionError, ParityError, SourceError
from monograph.export.fusion.cascade import fuse_cascade, plan_cascade
from monograph.export.lowering import find_lowering, lower, split_cascade
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.pipelines.lower import lower_model
from monograph.pipelines.measure import measure_models
from monograph.runtime.session import Session, open_session
from monograph.runtime.staged import PLAN_FILE, StagedSessions, open_staged, read_plan, read_staged
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule

Write = Callable[..., OnnxFile]
QUICK = TimingRule(min_runs=40, min_s=0.0, max_s=2.0, warmup_s=0.0)


@pytest.fixture
def cascade(write_linear: Write, tmp_path: Path) -> OnnxFile:
    files = [write_linear(f"m{seed}", seed=seed) for seed in range(2)]
    return fuse_cascade(plan_cascade(files, thresholds=[0.6]), tmp_path / "cascade.onnx").file


def drawn(count: int = 64) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32) * 2}


def answers(
    model: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]], inputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    (answer,) = model(inputs).values()
    return answer


@pytest.mark.parametrize("count", [2, 3])
def test_it_gives_what_the_cascade_gives(count: int, write_linear: Write, tmp_path: Path):
    files = [write_linear(f"m{seed}", seed=seed) for seed in range(count)]
    cascade = fuse_cascade(plan_cascade(files, thresholds=[0.6] * (count - 1)), tmp_path / "cascade.onnx").file
    made = split_cascade(cascade, tmp_path / "staged")
    assert {batch.batch_size for batch in made.proof.batches} == {1, 2, 5, 16}
    staged = open_staged(made.path)
    assert [stage.file for stage in staged.plan.stages] == [f"stage-{index + 1}.onnx" for index in range(count)]
    assert staged.plan.contract == cascade.contract
    for rows in (1, 2, 64):
        expected = answers(open_session(cascade.path), drawn(rows))
        np.testing.assert_allclose(answers(staged, drawn(rows)), expected, atol=1e-6)
    operators = {node.op_type for stage in staged.plan.stages for node in onnx.load(made.path / stage.file).graph.node}
    assert operators & {"If", "Compress", "NonZero", "ScatterND"} == set()


def test_later_stages_run_on_hard_rows_alone(cascade: OnnxFile, tmp_path: Path):
    staged = open_staged(split_cascade(cascade, tmp_path / "staged").path)
    asked: list[int] = []

    def watched(session: Session) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            asked.append(len(inputs["x"]))
            return session(inputs)

        call.batch_size = None
        return call

    driven = StagedSessions(staged.path, staged.plan, [watched(session) for session in staged.sessions])
    hard = staged.sessions[0](drawn())["hard"]
    assert 0 < hard.sum() < 64
    driven(drawn())
    assert asked == [64, hard.sum()]
    asked.clear()
    easy = np.flatnonzero(~hard)[:3]
    driven({"x": drawn()["x"][easy]})
    assert asked == [3]


def test_what_a_shared_trunk_gave_is_handed_on(write_model: Write, tmp_path: Path):
    rng = np.random.default_rng(1)
    text = '<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 3] logits)'
    trunk = rng.standard_normal((4, 6)).astype(np.float32)
    heads = [rng.standard_normal((6, 3)).astype(np.float32) for _ in range(3)]
    files = [
        write_model(f"m{n}", f"{text} {{ h = MatMul(x, t) r = Relu(h) logits = MatMul(r, w) }}", {"t": trunk, "w": head})
        for n, head in enumerate(heads)
    ]
    cascade = fuse_cascade(plan_cascade(files, thresholds=[0.6, 0.6]), tmp_path / "cascade.onnx").file
    made = split_cascade(cascade, tmp_path / "staged")
    first, second, third = read_plan(made.path).stages
    assert len(first.carried) == 1
    assert second.inputs == third.inputs == first.carried
    assert [node.op_type for node in onnx.load(made.path / third.file).graph.node].count("MatMul") == 1
    expected = answers(open_session(cascade.path), drawn())
    np.testing.assert_allclose(answers(open_staged(made.path), drawn()), expected, atol=1e-6)


def test_a_stage_may_be_lowered_by_itself(cascade: OnnxFile, tmp_path: Path):
    folder = split_cascade(cascade, tmp_path / "staged").path
    lower(find_lowering("static-batch"), read_onnx(folder / "stage-2.onnx"), tmp_path / "fixed.onnx", batch_size=3)
    shutil.move(tmp_path / "fixed.onnx", folder / "stage-2.onnx")
    expected = answers(open_session(cascade.path), drawn(20))
    np.testing.assert_allclose(answers(open_staged(folder), drawn(20)), expected, atol=1e-6)


def test_it_is_measured_as_one_model(cascade: OnnxFile, tmp_path: Path):
    folder = tmp_path / "staged"
    lower_model(cascade.path, folder, to="sessions")
    one, two = measure_models([cascade.path, folder], rule=QUICK, batch_sizes=(4,), threads=1)
    assert two.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert two.latency.batch_size == 4
    assert {name.split("/")[0] for name in two.placement[0].nodes} == {"stage-1", "stage-2"}
    assert one.sha256 != two.sha256
    with pytest.raises(ConfigError, match="--profile tells the time in one session"):
        measure_models([folder], profile=True)
    with pytest.raises(ConfigError, match=r"predict each, --on nnapi .*/stage-1\.onnx"):
        measure_models([folder], on=["nnapi"])


@pytest.mark.slow
def test_it_runs_wholly_on_the_npu_where_no_cascade_does(digits: tuple[OnnxFile, Rows, Rows], tmp_path: Path):
    qnn = find_target("qnn-htp")
    if not qnn.is_available():
        pytest.skip(qnn.describe())
    source, calibration, unseen = digits
    plan = plan_cascade([source, source], names=["a", "b"], thresholds=[0.9], share=False)
    cascade = fuse_cascade(plan, tmp_path / "cascade.onnx").file
    folder = split_cascade(cascade, tmp_path / "staged", rows=calibration).path
    for stage in ("stage-1.onnx", "stage-2.onnx"):
        file = read_onnx(folder / stage)
        made = lower(find_lowering("qdq-htp"), file, tmp_path / stage, calibration=calibration, rows=unseen)
        made.path.replace(folder / stage)
    rows = unseen.take(slice(0, 30))
    np.savez(tmp_path / "rows.npz", pixels=rows.inputs["pixels"], y=rows.labels)
    (measured,) = measure_models([folder], on=["qnn-htp"], data=str(tmp_path / "rows.npz"))
    assert set(measured.nodes_per_provider) == {qnn.provider}
    assert measured.accuracy.top1.estimate > 0.8


class TestFaults:
    def test_what_is_no_cascade_is_refused(self, write_linear: Write, tmp_path: Path):
        with pytest.raises(FusionError, match="has no branch"):
            split_cascade(write_linear("plain"), tmp_path / "staged")
        assert not (tmp_path / "staged").exists()

    def test_another_folder_is_left_alone_and_an_earlier_one_replaced(self, cascade: OnnxFile, tmp_path: Path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter.txt").write_text("dear")
        with pytest.raises(ConfigError, match="is there already and is no cascade in stages"):
            split_cascade(cascade, tmp_path / "mine")
        split_cascade(cascade, tmp_path / "staged")
        split_cascade(cascade, tmp_path / "staged")
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["mine", "staged"]

    def test_stages_that_compute_something_else_are_not_written(
        self, cascade: OnnxFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def driven_wrongly(self: StagedSessions, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"logits": self.sessions[0](inputs)["logits"]}

        monkeypatch.setattr(StagedSessions, "__call__", driven_wrongly)
        with pytest.raises(ParityError, match="staged"):
            split_cascade(cascade, tmp_path / "staged")
        assert not (tmp_path / "staged").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".monograph")]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda plan: plan["stages"][1].update(file="../cascade.onnx"), "is no plain name of a file"),
            (lambda plan: plan["stages"][0].update(hard=None), "has to tell which rows are hard"),
            (lambda plan: plan.update(version=2), "is of version 2"),
            (lambda plan: plan.pop("stages"), "is damaged"),
            (lambda plan: plan["stages"][1].update(file="stage-9.onnx"), r"stage-9\.onnx is missing"),
        ],
    )
    def test_a_damaged_plan_is_refused(self, cascade: OnnxFile, tmp_path: Path, change: Callable[[dict], object], message: str):
        folder = split_cascade(cascade, tmp_path / "staged").path
        plan = json.loads((folder / PLAN_FILE).read_text())
        change(plan)
        (folder / PLAN_FILE).write_text(json.dumps(plan))
        with pytest.raises(SourceError, match=message):
            read_staged(folder)
