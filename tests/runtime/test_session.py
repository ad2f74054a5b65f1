from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from monograph.errors import ConfigError, SourceError, WorkerError
from monograph.runtime.processor import requesting_threads
from monograph.runtime.results import Placed
from monograph.runtime.session import open_session, save_optimised, usable_cores
from monograph.runtime.session_spec import SessionSpec

ROWS = np.array([[1, 2, 3, 4], [0, -1, 0.5, 2]], np.float32)
Classifier = Callable[..., Path]


def test_outputs_come_by_name(classifier: Classifier, weights: np.ndarray):
    session = open_session(classifier(), threads=1)
    outputs = session({"x": ROWS})
    assert list(outputs) == session.output_names == ["logits"]
    np.testing.assert_allclose(outputs["logits"], ROWS @ weights, rtol=1e-5, atol=1e-6)
    assert outputs["logits"].dtype == np.float32


def test_several_outputs_keep_the_graphs_order(tmp_path: Path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> '
        "g (float[n] b, float[n] a) => (float[n] difference, float[n] sum) { sum = Add(a, b) difference = Sub(a, b) }"
    )
    onnx.save(model, tmp_path / "two.onnx")
    session = open_session(tmp_path / "two.onnx", threads=1)
    outputs = session({"a": np.array([5, 7], np.float32), "b": np.array([1, 2], np.float32)})
    assert {name: array.tolist() for name, array in outputs.items()} == {"difference": [4, 5], "sum": [6, 9]}
    assert list(outputs) == ["difference", "sum"]


def test_a_bound_call_computes_the_same_each_time(classifier: Classifier):
    session = open_session(classifier(), threads=1)
    call = session.bind({"x": ROWS})
    first, second = call(), call()
    np.testing.assert_array_equal(first[0], session({"x": ROWS})["logits"])
    np.testing.assert_array_equal(second[0], first[0])


def test_placement_names_the_nodes_that_each_provider_runs(tmp_path: Path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> '
        "g (float[2] x) => (float[2] y) { [first] a = Cos(x) b = Tan(a) [last] y = Sin(b) }"
    )
    onnx.save(model, tmp_path / "three.onnx")
    (placed,) = open_session(tmp_path / "three.onnx", threads=1, record_placement=True).placement()
    assert placed == Placed("CPUExecutionProvider", ("first", "Tan", "last"), ("Cos", "Tan", "Sin"), 1)


def test_placement_that_was_not_recorded_is_an_error_of_ours(classifier: Classifier):
    with pytest.raises(WorkerError, match=r"where the nodes of classifier\.onnx run was not recorded: "):
        open_session(classifier(), threads=1).placement()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_asked_for(classifier: Classifier, threads: int):
    options = open_session(classifier(), threads=threads).ort_session.get_session_options()
    assert options.intra_op_num_threads == threads
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL


def test_threads_are_the_usable_cores_where_nobody_has_set_them(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    def threads() -> int:
        return open_session(classifier()).ort_session.get_session_options().intra_op_num_threads

    assert usable_cores() >= 1
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads() == usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    with requesting_threads(2):
        assert threads() == 2


def test_threads_spin_only_where_that_is_asked_for(classifier: Classifier):
    options = open_session(classifier(), threads=1).ort_session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("spinning", [True, False])
def test_spinning_is_what_was_asked_for(classifier: Classifier, spinning: bool):
    options = open_session(classifier(), threads=1, spinning=spinning).ort_session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))


def test_nothing_runs_on_another_provider_unasked(classifier: Classifier):
    assert open_session(classifier(), threads=1).ort_session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(SourceError, match=rf"ONNX Runtime {ort.__version__} cannot load .*model\.onnx: ") as caught:
        open_session(tmp_path / "model.onnx", threads=1)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder(tmp_path: Path):
    for path in (tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(SourceError, match="cannot load"):
            open_session(path, threads=1)


def test_an_op_that_onnx_runtime_does_not_have(tmp_path: Path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "ours": 1]> g (float[2] x) => (float[2] y) { y = ours.Magic(x) }'
    )
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(SourceError, match="Magic"):
        open_session(tmp_path / "model.onnx", threads=1)


def test_a_name_that_is_not_utf8_is_a_source_error(classifier: Classifier):
    path = classifier()
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"Mat\xd5ul"))
    with pytest.raises(SourceError):
        open_session(path, threads=1)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": ROWS.astype(np.float64)},
        {"x": ROWS.astype(np.int64)},
        {"x": ROWS[0]},
        {"x": ROWS[:, :2]},
        {"x": ROWS.astype(str)},
        {"x": ROWS, "z": ROWS},
    ],
    ids=["float64", "int64", "another rank", "another width", "texts", "an input more"],
)
def test_inputs_that_do_not_fit_are_a_worker_error_in_one_line(classifier: Classifier, inputs: dict[str, np.ndarray]):
    session = open_session(classifier(), threads=1)
    with pytest.raises(WorkerError, match=r"^classifier\.onnx failed while running: ") as caught:
        session(inputs)
    assert "\n" not in str(caught.value)
    assert session({"x": ROWS})["logits"].shape == (2, 3), "the session lives on"


def test_a_missing_input_is_a_worker_error_too(classifier: Classifier):
    with pytest.raises(WorkerError, match=r"classifier\.onnx failed while running: Required inputs \(\['x'\]\) are missing"):
        open_session(classifier(), threads=1)({})


@pytest.mark.parametrize("provider", ["QNNExecutionProvider", "NoSuchProvider"])
def test_a_provider_that_is_not_there_is_an_error(classifier: Classifier, provider: str):
    if provider in ort.get_available_providers():
        pytest.skip(f"{provider} is there")
    with pytest.raises(ConfigError, match=f"has no {provider}: .*`monograph targets`"):
        open_session(classifier(), spec=SessionSpec(provider), threads=1)


def test_the_optimised_graph_has_its_free_dimensions_fixed_and_nothing_fused(tmp_path: Path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[n, 4] x) => (float[n, 4] y) '
        "{ s = Shape(x) r = Reshape(x, s) m = MatMul(r, w) a = Add(m, b) y = Relu(a) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32) + 1, "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "b"))
    onnx.save(model, tmp_path / "model.onnx")
    save_optimised(tmp_path / "model.onnx", tmp_path / "shown.onnx", {"n": 3})
    shown = onnx.load(tmp_path / "shown.onnx")
    assert [dim.dim_value for dim in shown.graph.input[0].type.tensor_type.shape.dim] == [3, 4]
    operators = {node.op_type for node in shown.graph.node}
    assert "Relu" in operators
    assert "Shape" not in operators  # its result is known now
    assert all(node.domain in ("", "ai.onnx") for node in shown.graph.node)


def test_dimensions_that_a_model_cannot_have_are_refused_by_name(tmp_path: Path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[n, k] x) => (float[n, 3] y) { y = MatMul(x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(SourceError, match=r"cannot load .*model\.onnx with n=1, k=9: "):
        save_optimised(tmp_path / "model.onnx", tmp_path / "shown.onnx", {"n": 1, "k": 9})
