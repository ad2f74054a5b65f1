"""Reading without weights, and writing them one after the other, compared with what the onnx package reads and writes."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from monograph.errors import SourceError
from monograph.models import onnx_file, onnx_lazy
from monograph.models.onnx_file import load_graph, read_onnx, write_onnx
from monograph.models.onnx_lazy import absolute, load_proto, save_proto
from monograph.runtime.session import open_session

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
SQUEEZENET = DATA / "light" / "light_squeezenet.onnx"


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_lazy, "LARGE_FILE_BYTES", 0)
    monkeypatch.setattr(onnx_lazy, "LARGE_TENSOR_BYTES", 1)
    monkeypatch.setattr(onnx_file, "LARGE_TENSOR_BYTES", 1)


def stack(weights: dict[str, TensorProto]) -> onnx.ModelProto:
    """``logits = x·w1·w2…``"""
    values = ["x", *(f"h{index}" for index in range(len(weights) - 1)), "logits"]
    nodes = [helper.make_node("MatMul", [source, name], [out]) for source, name, out in zip(values, weights, values[1:])]  # noqa: B905
    size = next(iter(weights.values())).dims[0]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in ("x", "logits")]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], list(weights.values()), doc_string="of the graph")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, doc_string="of the model")


def matrix(name: str, *, seed: int = 0, raw: bool = True, size: int = 8) -> TensorProto:
    array = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    tensor = (
        numpy_helper.from_array(array, name) if raw else helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel())
    )
    tensor.doc_string = "of the weight"
    tensor.metadata_props.add(key="k", value="v")
    return tensor


def contents(proto: onnx.ModelProto) -> list[tuple[str, bytes]]:
    return [(tensor.name, numpy_helper.to_array(tensor).tobytes()) for tensor in proto.graph.initializer]


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("kind", ["pytorch-converted", "pytorch-operator", "simple", "light"])
def test_a_model_without_its_weights_is_the_model_once_they_are_read(kind: str):
    paths = sorted(DATA.glob("light/*.onnx" if kind == "light" else f"{kind}/*/model.onnx"))
    assert paths
    lazy_count = 0
    for path in paths:
        expected = onnx.load(str(path), load_external_data=False)
        lazy = load_proto(path)
        lazy_count += sum(map(uses_external_data, lazy.graph.initializer))
        load_external_data_for_model(lazy, str(path.parent))
        assert contents(lazy) == contents(expected), path
        for proto in (lazy, expected):
            del proto.graph.initializer[:]
        assert lazy == expected, path
    assert lazy_count > 0 or kind == "simple"


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("raw", [True, False])
def test_weights_written_one_by_one_make_the_bytes_that_onnx_writes(raw: bool, tmp_path: Path):
    source = tmp_path / "source.onnx"
    onnx.save(stack({name: matrix(name, seed=seed, raw=raw) for seed, name in enumerate(("w1", "w2"))}), source)
    lazy = load_proto(source)
    here = {tensor.name: ir.from_proto(tensor) for tensor in lazy.graph.initializer}
    save_proto(lazy, tmp_path / "out.onnx", {name: absolute(tensor, tmp_path) for name, tensor in here.items()})
    as_raw = stack({name: matrix(name, seed=seed) for seed, name in enumerate(("w1", "w2"))})
    assert (tmp_path / "out.onnx").read_bytes() == as_raw.SerializeToString()


@pytest.mark.usefixtures("everything_is_large")
def test_a_real_network_goes_through_lazily_and_computes_the_same(tmp_path: Path):
    graph = load_graph(SQUEEZENET)
    assert any(isinstance(value.const_value, ir.ExternalTensor) for value in graph.graph.initializers.values())
    write_onnx(graph, tmp_path / "copy.onnx", {}, lambda path: {"key": "value"})
    assert [file.name for file in tmp_path.iterdir()] == ["copy.onnx"]
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (name,) = (spec.name for spec in read_onnx(SQUEEZENET).contract.inputs)
    (expected,) = open_session(SQUEEZENET)({name: x}).values()
    (got,) = open_session(tmp_path / "copy.onnx")({name: x}).values()
    np.testing.assert_array_equal(got, expected)
    assert read_onnx(tmp_path / "copy.onnx").metadata["key"] == "value"


def field(number: int, body: bytes) -> bytes:
    """A protobuf field of up to 16 KB."""
    return bytes([number << 3 | 2, len(body) & 0x7F | 0x80, len(body) >> 7]) + body


@pytest.mark.usefixtures("everything_is_large")
def test_a_weight_that_is_written_in_parts_is_read_at_once(tmp_path: Path):
    """Protobuf joins the parts of a graph, and those of its numbers."""
    proto = stack({"w": matrix("w", raw=False)})
    numbers = list(proto.graph.initializer[0].float_data)
    parts = [TensorProto(float_data=half).SerializeToString() for half in (numbers[:32], numbers[32:])]
    head = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 8]).SerializeToString()
    del proto.graph.initializer[:]
    (tmp_path / "parts.onnx").write_bytes(proto.SerializeToString() + field(7, field(5, head + b"".join(parts))))
    assert contents(load_proto(tmp_path / "parts.onnx")) == contents(stack({"w": matrix("w")}))


@pytest.mark.usefixtures("everything_is_large")
def test_numbers_that_are_not_laid_out_as_raw_data_are_read_at_once(tmp_path: Path):
    ints = helper.make_tensor("i", TensorProto.INT64, [3], [1, -2, 3])
    halves = helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.5, -2.0])
    words = helper.make_tensor("s", TensorProto.STRING, [2], ["a", "b"])
    proto = onnx.ModelProto(graph=onnx.GraphProto(initializer=[ints, halves, words]))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert load_proto(tmp_path / "model.onnx") == proto


@pytest.mark.usefixtures("everything_is_large")
@given(cut=st.integers(1, 600), noise=st.binary(min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_refused_or_read_as_onnx_reads_them(cut: int, noise: bytes, tmp_path_factory: pytest.TempPathFactory):
    whole = stack({"w": matrix("w")}).SerializeToString()
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    for damaged in (whole[: -min(cut, len(whole) - 1)], whole[: cut % len(whole)] + noise + whole[cut % len(whole) :]):
        path.write_bytes(damaged)
        try:
            lazy = load_proto(path)
        except (DecodeError, ValueError):
            continue
        expected = onnx.ModelProto()
        expected.ParseFromString(damaged)
        assert [tensor.name for tensor in lazy.graph.initializer] == [tensor.name for tensor in expected.graph.initializer]


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_large_file_that_is_cut_short_is_named(kept: float, tmp_path: Path):
    whole = stack({"w": matrix("w", size=64)}).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(SourceError, match="cut short"):
        read_onnx(path)


@pytest.mark.usefixtures("everything_is_large")
def test_a_weight_of_too_few_bytes_is_refused(tmp_path: Path):
    proto = stack({"w": matrix("w", size=64)})
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(SourceError, match="'w' wants 16380 bytes"):
        read_onnx(tmp_path / "model.onnx")
