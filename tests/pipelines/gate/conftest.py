"""Classifiers of real digits as ONNX files, and a target that runs them in this process, at times that are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from monograph.models.data.digits import optical_digits
from monograph.models.data.rows import Array
from monograph.pipelines.gate import bench, possible
from monograph.runtime.job import Job, RawRun
from monograph.runtime.metrics.paired import Answers
from monograph.runtime.results import Evidence, Placed
from monograph.runtime.session import open_session
from monograph.runtime.targets import Target, find_target
from monograph.runtime.timing import RawTiming

CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Digits:
    """A reference, candidates that lie ever farther from it, and rows that none of them was fitted on."""

    folder: Path
    reference: Path
    near: Path
    bad: Path
    test: Path
    few: Path
    train: Path


def linear_classifier(path: Path, weight: Array, bias: Array, metadata: dict[str, str] | None = None) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32), "w"), numpy_helper.from_array(bias.astype(np.float32), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("gate")
    table = optical_digits()
    x, y = (table["x"].reshape(-1, 64) / 255).astype(np.float32), table["y"]
    is_train = np.arange(len(y)) % 3 == 0
    fitted = LogisticRegression(C=0.5, max_iter=300).fit(x[is_train], y[is_train])
    weight, bias, rng = fitted.coef_.T, fitted.intercept_, np.random.default_rng(0)
    for name, rows in (("train", is_train), ("test", ~is_train)):
        np.savez(folder / f"{name}.npz", x=x[rows], y=y[rows])
    np.savez(folder / "few.npz", x=x[~is_train][:60], y=y[~is_train][:60])
    return Digits(
        folder,
        linear_classifier(folder / "reference.onnx", weight, bias),
        linear_classifier(folder / "near.onnx", weight + rng.normal(0, 0.005, weight.shape), bias),
        linear_classifier(folder / "bad.onnx", weight + rng.normal(0, 2, weight.shape), bias),
        folder / "test.npz",
        folder / "few.npz",
        folder / "train.npz",
    )


@dataclass
class InProcess:
    """A target that runs a model here and tells the times that it is told to."""

    samples_ms: Array = field(default_factory=lambda: np.full(400, 2.0))
    start_ms: float = 5.0
    memory_bytes: int | None = 50_000_000
    factor: dict[str, float] = field(default_factory=dict)
    """By the name of a contender: how much slower it is."""

    def run(self, job: Job) -> RawRun:
        session = open_session(Path(job.contender.loader_arguments["path"]))
        rows = job.rows if job.stream is None else job.stream.read(0, job.stream.row_count)
        size = job.contender.contract.inputs[0].shape[0]
        name = job.contender.contract.output.name
        batches = [] if rows is None else rows.batches(size if isinstance(size, int) else len(rows))
        answers = [np.asarray(session(dict(batch.inputs))[name]) for batch in batches]
        outputs = np.concatenate(answers) if answers else None
        samples = self.samples_ms * self.factor.get(job.contender.name, 1.0) * 1e6
        start_ns = int(self.start_ms * 1e6)
        timing = RawTiming(1, start_ns, start_ns, 0, tuple(samples.astype(int).tolist()))
        placed = Placed(CPU, ("node",), ("Gemm",), 1)
        return RawRun((timing,), outputs, (placed,), self.memory_bytes)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    fake = InProcess()

    def find(name: str) -> Target:
        target = replace(find_target("cpu"), name=name, run=fake.run, lowering=None)
        simulated = replace(target.probe(), is_here=True, evidence=Evidence.SIMULATED)
        return replace(target, probe=lambda: simulated) if name == "emulated" else target

    for module in (bench, possible):
        monkeypatch.setattr(module, "find_target", find)
    return fake


@pytest.fixture
def answers_of_counts() -> Callable[[int, int, int], tuple[Answers, Answers]]:
    return answers


def answers(lost: int, gained: int, row_count: int) -> tuple[Answers, Answers]:
    """Candidate and reference that differ in so many rows; where they agree both are right."""
    candidate, reference = np.ones(row_count, bool), np.ones(row_count, bool)
    candidate[:lost] = False
    reference[lost : lost + gained] = False
    zeros = np.zeros(row_count)
    return tuple(Answers(right.astype(np.int64), right, zeros, zeros + 0.9) for right in (candidate, reference))
