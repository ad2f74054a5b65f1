"""A model run again elsewhere: the same batches, in the target's own way to run, and never quietly on the processor here."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from monograph.errors import ConfigError, PlacementError, WorkerError
from monograph.models.onnx_file import read_onnx
from monograph.runtime.job import Job, RawRun, run_in_process
from monograph.runtime.on_target import SentSession, open_on_target
from monograph.runtime.session import Session
from monograph.runtime.targets import TARGETS, Target, find_target

CPU = find_target("cpu")


def sent_target(jobs: list[Job] | None = None) -> Target:
    """The processor here as a target that is sent its jobs, which are kept in ``jobs``."""

    def run(job: Job) -> RawRun:
        if jobs is not None:
            jobs.append(job)
        return run_in_process(job)

    return replace(CPU, name="elsewhere", run=run)


def sequence_model(path: Path) -> Path:
    """Write y [batch x seq] = x - mean of the whole batch: another cut into batches is another computation."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, seq] x) => (float[batch, seq] y) '
        "{ m = ReduceMean<keepdims = 1>(x) y = Sub(x, m) }"
    )
    onnx.save(model, path)
    return path


def batches(*shapes: tuple[int, int]) -> list[Mapping[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal(shape, dtype=np.float32)} for shape in shapes]


def test_batches_keep_their_cut_and_those_of_one_form_go_together(tmp_path: Path):
    path, jobs = sequence_model(tmp_path / "m.onnx"), []
    given = batches((1, 4), (5, 4), (2, 7), (16, 4))
    session = open_on_target(path, read_onnx(path).contract, sent_target(jobs))
    assert isinstance(session, SentSession)
    session.prepare(given)
    for inputs in given:
        expected = inputs["x"] - inputs["x"].mean()
        np.testing.assert_allclose(session(inputs)["y"], expected, atol=1e-6)
    assert [len(job.rows) for job in jobs] == [22, 2]


def test_a_batch_that_was_not_prepared_is_run_when_it_is_asked_for(tmp_path: Path):
    path = sequence_model(tmp_path / "m.onnx")
    (inputs,) = batches((3, 4))
    session = open_on_target(path, read_onnx(path).contract, sent_target())
    np.testing.assert_allclose(session(inputs)["y"], inputs["x"] - inputs["x"].mean(), atol=1e-6)


def test_what_cannot_be_run_is_told_for_its_batches_alone(classifier: Callable[..., Path]):
    path = classifier()
    good, wide = batches((2, 4), (2, 5))
    session = open_on_target(path, read_onnx(path).contract, sent_target())
    session.prepare([good, wide])
    assert session(good)["logits"].shape == (2, 3)
    with pytest.raises(WorkerError, match="failed while running"):
        session(wide)


def test_another_provider_is_refused(classifier: Callable[..., Path]):
    path = classifier()
    session = open_on_target(path, read_onnx(path).contract, replace(sent_target(), provider="CoreMLExecutionProvider"))
    with pytest.raises(PlacementError, match="elsewhere did not run the model"):
        session.prepare(batches((2, 4)))


def test_a_target_that_opens_sessions_here_does(classifier: Callable[..., Path]):
    path = classifier()
    assert isinstance(open_on_target(path, read_onnx(path).contract, CPU), Session)


@pytest.mark.parametrize("name", ["coreml", "nnapi", "xnnpack"])
def test_nothing_runs_on_a_predicted_target(classifier: Callable[..., Path], name: str):
    path = classifier()
    if TARGETS[name].evidence.value != "predicted":
        pytest.skip(f"{name} runs here")
    with pytest.raises(ConfigError, match=f"nothing runs on {name} here"):
        open_on_target(path, read_onnx(path).contract, TARGETS[name])
