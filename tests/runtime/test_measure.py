import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from monograph.errors import MonographError, SourceError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.runtime.environment import installed_versions
from monograph.runtime.measure import Contender, Settings, measure, raw_timings
from monograph.runtime.process import call_in_fresh_process
from monograph.runtime.results import Evidence, to_record
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session, usable_cores
from monograph.runtime.targets import find_target

CPU = find_target("cpu")
Classifier = Callable[..., Path]
Make = Callable[[Path], Contender]


def labelled_rows(weights: np.ndarray, n: int = 77) -> Rows:
    """Rows of which about three in four are right."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 4)).astype(np.float32)
    labels = np.where(rng.random(n) < 0.75, (x @ weights).argmax(axis=1), rng.integers(0, 3, n))
    return Rows({"x": x}, labels)


def test_a_measurement_of_a_classifier(classifier: Classifier, contender: Make, quick: Settings, weights: np.ndarray):
    rows = labelled_rows(weights)
    path = classifier()
    result = measure(contender(path), CPU, rows, quick)

    logits = rows.inputs["x"] @ weights
    right = int((logits.argmax(axis=1) == rows.labels).sum())
    assert 0 < right < 77
    assert result.accuracy.row_count == 77
    assert result.accuracy.top1.estimate == right / 77
    chosen = np.exp(logits)[np.arange(77), rows.labels] / np.exp(logits).sum(axis=1)
    assert result.accuracy.nll == pytest.approx(-np.log(chosen).mean(), rel=1e-5)

    assert result.nodes_per_provider == {"CPUExecutionProvider": 1}
    assert (result.model, result.target, result.evidence) == ("classifier", "cpu", Evidence.EXECUTED)
    assert result.size_bytes == path.stat().st_size
    assert len(result.sha256) == 64

    assert result.latency.batch_size == 1
    assert len(result.latency.samples_ns) == 40
    assert all(isinstance(sample, int) and sample > 0 for sample in result.latency.samples_ns)
    assert result.latency.p50_s.estimate == pytest.approx(np.median(result.latency.samples_ns) / 1e9)
    assert result.latency.p99_s is None
    assert 0 < result.latency.p50_s.low <= result.latency.p50_s.estimate <= result.latency.p50_s.high
    assert result.latency.create_s > 0
    assert result.latency.first_run_s > 0
    assert [(item.batch_size, item.run_count) for item in result.throughput] == [(1, 40), (4, 40)]
    assert all(item.rows_per_s.estimate > 0 for item in result.throughput)

    assert result.peak_memory_bytes > 10_000_000, "an interpreter with numpy and ONNX Runtime takes more"
    environment = result.environment
    assert (environment.threads, environment.spinning) == (1, True)
    assert environment.usable_cores == usable_cores() <= environment.logical_cores
    assert environment.packages == installed_versions()
    assert environment.packages["onnxruntime"] == ort.__version__


def test_peak_memory_is_the_childs_and_not_that_of_its_parent():
    ballast = np.ones(50_000_000)
    peak_bytes = call_in_fresh_process("monograph.runtime.runner:peak_memory_bytes", {})
    assert 10_000_000 < peak_bytes < ballast.nbytes


def test_a_measurement_is_json(classifier: Classifier, contender: Make, quick: Settings, weights: np.ndarray):
    result = measure(contender(classifier()), CPU, labelled_rows(weights), dataclasses.replace(quick, batch_sizes=(1,)))
    record = json.loads(json.dumps(to_record(result)))
    assert record["latency"]["samples_ns"] == list(result.latency.samples_ns)
    assert record["evidence"] == "executed"
    assert record["accuracy"]["top1"]["estimate"] == result.accuracy.top1.estimate


def test_without_rows_nothing_is_scored(classifier: Classifier, contender: Make, quick: Settings):
    result = measure(contender(classifier()), CPU, None, quick)
    assert result.accuracy is None
    assert [item.batch_size for item in result.throughput] == [1, 4]


def test_without_labels_nothing_is_scored(classifier: Classifier, contender: Make, quick: Settings):
    assert measure(contender(classifier()), CPU, Rows({"x": np.ones((3, 4), np.float32)}), quick).accuracy is None


def test_a_model_without_classes_is_not_scored(classifier: Classifier, contender: Make, quick: Settings):
    made = contender(classifier())
    made = dataclasses.replace(made, contract=dataclasses.replace(made.contract, kind=Kind.EMBEDDING))
    rows = Rows({"x": np.ones((3, 4), np.float32)}, np.zeros(3, np.int64))
    assert measure(made, CPU, rows, quick).accuracy is None


@pytest.mark.parametrize("n", [3, 8, 20])
def test_a_fixed_batch_is_filled_up_and_every_row_counted_once(
    classifier: Classifier, contender: Make, quick: Settings, weights: np.ndarray, n: int
):
    rows = labelled_rows(weights, n)
    result = measure(contender(classifier(batch="8")), CPU, rows, quick)
    right = (rows.inputs["x"] @ weights).argmax(axis=1) == rows.labels
    assert result.accuracy.row_count == n
    assert result.accuracy.top1.estimate == right.mean()
    assert [item.batch_size for item in result.throughput] == [8], "the only size that the model takes"
    assert result.latency.batch_size == 8


@pytest.mark.parametrize("batch", ["batch", "1", "7", "32", "64"])
@pytest.mark.parametrize("n", [1, 6, 32, 33, 65])
def test_the_outputs_of_all_rows_come_in_their_order(
    classifier: Classifier, contender: Make, weights: np.ndarray, batch: str, n: int
):
    path = classifier(batch=batch)
    x = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)
    outputs = run_all_rows(open_session(path, threads=1), contender(path).contract, Rows({"x": x}))
    np.testing.assert_allclose(outputs, x @ weights, rtol=1e-5, atol=1e-6)


def test_only_the_primary_output_is_kept(classifier: Classifier, contender: Make):
    contract = contender(classifier()).contract
    two = Contract(contract.inputs, (contract.output, dataclasses.replace(contract.output, name="other")), contract.kind)
    logits = run_all_rows(
        lambda inputs: {"other": inputs["x"] * 0, "logits": inputs["x"] * 2}, two, Rows({"x": np.ones((3, 4), np.float32)})
    )
    assert logits.tolist() == [[2.0] * 4] * 3


def test_more_threads_than_cores_are_warned_of(classifier: Classifier, contender: Make, quick: Settings):
    threads = usable_cores() + 1
    result = measure(contender(classifier()), CPU, None, dataclasses.replace(quick, threads=threads, batch_sizes=(1,)))
    assert f"{threads} threads on {usable_cores()} usable cores: they wait for one another" in result.warnings
    assert result.environment.threads == threads


def test_all_usable_cores_are_used_where_nothing_is_said(classifier: Classifier, contender: Make, quick: Settings):
    result = measure(contender(classifier()), CPU, None, dataclasses.replace(quick, threads=None, batch_sizes=(1,)))
    assert result.environment.threads == usable_cores()
    assert not any("threads on" in warning for warning in result.warnings)


def test_nodes_that_ran_elsewhere_on_request_are_warned_of(classifier: Classifier, contender: Make, quick: Settings):
    target = dataclasses.replace(CPU, provider="QNNExecutionProvider")
    result = measure(contender(classifier()), target, None, dataclasses.replace(quick, batch_sizes=(1,), allow_fallback=True))
    assert "0 of 1 nodes ran on QNNExecutionProvider, 1 on CPUExecutionProvider (MatMul 'MatMul')" in result.warnings


def test_a_model_that_onnx_runtime_cannot_load_is_a_source_error(tmp_path: Path, contender: Make, quick: Settings):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "ours": 1]> g (float[n, 4] x) => (float[n, 4] logits) { logits = ours.Magic(x) }'
    )
    onnx.save(model, tmp_path / "magic.onnx")
    with pytest.raises(SourceError, match=r"cannot load .*magic\.onnx: .*Magic"):
        measure(contender(tmp_path / "magic.onnx"), CPU, None, quick)


def test_a_model_that_vanished_is_a_source_error(classifier: Classifier, contender: Make, quick: Settings):
    made = contender(classifier())
    Path(made.loader_arguments["path"]).unlink()
    with pytest.raises(SourceError, match="cannot load"):
        measure(made, CPU, None, quick)


@pytest.mark.parametrize("x", [np.ones((3, 5), np.float32), np.ones((3, 4), np.float64)], ids=["another width", "float64"])
def test_rows_that_do_not_fit_are_an_error_of_ours(classifier: Classifier, contender: Make, quick: Settings, x: np.ndarray):
    with pytest.raises(MonographError, match=r"Got invalid dimensions|Unexpected input data type"):
        measure(contender(classifier()), CPU, Rows({"x": x}), quick)


def test_raw_timings_are_one_for_each_batch_size(classifier: Classifier, contender: Make, quick: Settings):
    timings = raw_timings(contender(classifier()), None, quick)
    assert [(raw.batch_size, len(raw.samples_ns), raw.warmup_runs) for raw in timings] == [(1, 40, 0), (4, 40, 0)]
    assert all(raw.create_ns > 0 and raw.first_run_ns > 0 for raw in timings)


def test_fewer_rows_than_the_batch_are_repeated_for_timing(classifier: Classifier, contender: Make, quick: Settings):
    rows = Rows({"x": np.ones((2, 4), np.float32)})
    assert [raw.batch_size for raw in raw_timings(contender(classifier()), rows, quick)] == [1, 4]


@pytest.mark.parametrize("input_name", ["file", "allow_pickle"])
def test_an_input_may_have_any_name(
    classifier: Classifier, contender: Make, quick: Settings, weights: np.ndarray, input_name: str
):
    rows = labelled_rows(weights)
    rows = Rows({input_name: rows.inputs["x"]}, rows.labels)
    assert measure(contender(classifier(input_name=input_name)), CPU, rows, quick).accuracy.row_count == 77


def test_a_model_is_given_the_inputs_that_it_takes_and_no_others():
    contract = Contract((TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("batch", 2)),), Kind.EMBEDDING)
    rows = Rows({"x": np.ones((3, 2), np.float32), "token_type_ids": np.zeros((3, 2), np.int64)})

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert set(inputs) == {"x"}
        return {"y": inputs["x"]}

    assert run_all_rows(run, contract, rows).shape == (3, 2)
