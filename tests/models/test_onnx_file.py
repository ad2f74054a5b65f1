import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from monograph.errors import ContractError, InputError, ParityError, SourceError
from monograph.models import onnx_file
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract, Kind, TensorSpec
from monograph.models.files import sha256_of_files
from monograph.models.onnx_file import load_graph, read_onnx, write_onnx

ROWS = np.array([[1, 2, 3, 4], [0, -1, 0.5, 2]], np.float32)
WEIGHTS = np.arange(128, dtype=np.float32).reshape(4, 32)
"""512 bytes: onnx-ir leaves tensors below 256 bytes in the model file."""
CONTRACT = Contract(
    (TensorSpec("x", "float32", ("batch", 4)),),
    (TensorSpec("logits", "float32", ("batch", 3)),),
    Kind.LOGITS,
    ("cat", "dog", "ibis"),
)


def save(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the bytes as they are, whatever is wrong with them."""
    helper.set_model_props(model, dict(metadata or {}))
    path.write_bytes(model.SerializeToString())
    return path


def external_tensor(location: str, **entries: str) -> onnx.TensorProto:
    """float32 [4 x 32] called W whose data is said to lie at ``location``."""
    tensor = onnx.TensorProto(
        name="W", data_type=onnx.TensorProto.FLOAT, dims=WEIGHTS.shape, data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def external_model(tensor: onnx.TensorProto, place: str = "initializer") -> onnx.ModelProto:
    """``logits = x·W`` with W as an initializer, in a Constant, in one inside an If, or in one inside a function."""
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", tensor.dims[0]])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", tensor.dims[1]])
    product = helper.make_node("MatMul", ["x", "W"], ["logits"])
    constant = helper.make_node("Constant", [], ["W"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    opsets, functions, initializers = [helper.make_opsetid("", 18)], [], []
    if place == "initializer":
        nodes, initializers = [product], [tensor]
    elif place == "constant":
        nodes = [constant, product]
    elif place == "branch":
        branch = helper.make_graph([constant, product], "branch", [], [logits])
        condition = helper.make_node("Constant", [], ["condition"], value=numpy_helper.from_array(np.array(True)))
        nodes = [condition, helper.make_node("If", ["condition"], ["logits"], then_branch=branch, else_branch=branch)]
    else:
        opsets.append(helper.make_opsetid("ours", 1))
        functions.append(helper.make_function("ours", "Linear", ["x"], ["logits"], [constant, product], opsets[:1]))
        nodes = [helper.make_node("Linear", ["x"], ["logits"], domain="ours")]
    graph = helper.make_graph(nodes, "external", [x], [logits], initializers)
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def run(path: Path) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": ROWS})[0]


def accept(path: Path) -> dict[str, str]:
    assert path.is_file()
    return {}


def refuse(path: Path) -> dict[str, str]:
    raise ParityError("largest difference 0.5, expected at most 1e-5")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def inline_at_most_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_INLINE_BYTES", 16)


def test_what_a_file_says_of_itself(tmp_path: Path, linear: onnx.ModelProto):
    metadata = {CONTRACT_KEY: CONTRACT.to_json(), TOKENIZER_KEY: "{}", "mine": "ß"}
    path = save(linear, tmp_path / "model.onnx", metadata)
    file = read_onnx(path)
    assert file.path == path
    assert file.contract == CONTRACT
    assert file.contract.assumed == ()
    assert file.opset == 18
    assert file.metadata == metadata
    assert file.tokenizer_json == "{}"
    assert file.size_bytes == path.stat().st_size
    assert file.sha256 == sha256_of_files([path])


def test_a_file_without_contract_gets_one_and_says_so(tmp_path: Path, linear: onnx.ModelProto):
    file = read_onnx(save(linear, tmp_path / "model.onnx"))
    assert file.contract.inputs == CONTRACT.inputs
    assert file.contract.kind is Kind.LOGITS
    assert "model.onnx carries no contract" in file.contract.assumed[0]
    assert file.tokenizer_json is None


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(SourceError, match=r"no such file: .*model\.onnx"):
        read_onnx(tmp_path / "model.onnx")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path):
    with pytest.raises(SourceError, match=r"is a folder, expected an \.onnx file \(for a Hugging Face folder write hf:"):
        read_onnx(tmp_path)


def test_an_empty_file(tmp_path: Path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(SourceError, match=r"\(0 bytes\) holds no ONNX graph"):
        read_onnx(tmp_path / "model.onnx")


def test_a_file_cut_short_anywhere(tmp_path: Path, linear: onnx.ModelProto):
    whole = linear.SerializeToString()
    path = tmp_path / "model.onnx"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"is cut short|holds no ONNX graph|is not a valid ONNX model"):
            read_onnx(path)


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_a_source_error(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        with pytest.raises(SourceError):
            read_onnx(path)


def whole_file() -> bytes:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 4] x) => (float[batch, 4] logits) { logits = Relu(x) }'
    )
    helper.set_model_props(model, {"key": "value"})
    return model.SerializeToString()


@settings(deadline=None, max_examples=1500, derandomize=True, phases=(Phase.generate,), database=None)
@given(position=st.integers(0, len(whole_file()) - 1), value=st.integers(0, 255))
def test_one_damaged_byte_is_a_source_error_or_harmless(position: int, value: int):
    content = bytearray(whole_file())
    content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            read_onnx(path)


def test_a_name_that_is_not_utf8_is_a_source_error(tmp_path: Path, linear: onnx.ModelProto):
    content = linear.SerializeToString().replace(b"MatMul", b"Mat\xd5ul")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(SourceError):
        read_onnx(tmp_path / "model.onnx")


def test_an_unknown_element_type_is_a_source_error(tmp_path: Path, linear: onnx.ModelProto):
    linear.graph.input[0].type.tensor_type.elem_type = 63
    with pytest.raises(SourceError):
        read_onnx(save(linear, tmp_path / "model.onnx"))


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "function"])
@pytest.mark.parametrize("location", ["../secret.bin", "deep/../../secret.bin", "/etc/hostname", "", ".", "..", "link"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, place: str, location: str):
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    (folder / "link").symlink_to(tmp_path / "secret.bin")
    path = save(external_model(external_tensor(location), place), folder / "model.onnx")
    with pytest.raises(SourceError, match=r"outside the model's folder|is not a valid ONNX model"):
        read_onnx(path)


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "function"])
def test_external_data_through_a_linked_folder_is_refused(tmp_path: Path, place: str):
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "model" / "deep").symlink_to(tmp_path / "elsewhere")
    path = save(external_model(external_tensor("deep/secret.bin"), place), tmp_path / "model" / "model.onnx")
    with pytest.raises(SourceError, match=r"outside the model's folder|is not a valid ONNX model"):
        read_onnx(path)


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "function"])
def test_missing_external_data_is_refused(tmp_path: Path, place: str):
    path = save(external_model(external_tensor("weights.bin"), place), tmp_path / "model.onnx")
    with pytest.raises(SourceError, match=r"'weights\.bin' is missing: copy it beside the model|is not a valid ONNX model"):
        read_onnx(path)


@pytest.mark.parametrize("entries", [{"length": "512"}, {"offset": "4", "length": "512"}, {"offset": "4096", "length": "512"}])
def test_external_data_that_is_too_short_is_refused(tmp_path: Path, entries: dict[str, str]):
    (tmp_path / "weights.bin").write_bytes(bytes(511))
    path = save(external_model(external_tensor("weights.bin", **entries)), tmp_path / "model.onnx")
    with pytest.raises(SourceError, match=r"'weights\.bin' has 511 bytes, the model needs (512|516|4608): copy it again"):
        read_onnx(path)


@pytest.mark.parametrize("entries", [{}, {"offset": "16"}, {"length": "12"}, {"offset": "-16"}])
def test_external_data_that_is_too_short_for_its_shape_is_refused(tmp_path: Path, entries: dict[str, str]):
    (tmp_path / "weights.bin").write_bytes(bytes(511))
    path = save(external_model(external_tensor("weights.bin", **entries)), tmp_path / "model.onnx")
    with pytest.raises(SourceError):
        read_onnx(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "weights.bin", "offset": "many"},
        {"location": "weights.bin", "length": "5.12e2"},
        {"location": "weights\0.bin"},
        {"location": "w" * 300},
        {"location": "loop"},
    ],
)
def test_nonsense_about_external_data_is_refused(tmp_path: Path, entries: dict[str, str]):
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "loop").symlink_to("loop")
    path = save(external_model(external_tensor(**entries)), tmp_path / "model.onnx")
    with pytest.raises(SourceError):
        read_onnx(path)


def test_external_data_counts_for_size_and_digest(tmp_path: Path):
    data = tmp_path / "weights.bin"
    data.write_bytes(WEIGHTS.tobytes())
    path = save(external_model(external_tensor("weights.bin")), tmp_path / "model.onnx")
    first = read_onnx(path)
    assert first.size_bytes == path.stat().st_size + 512
    assert first.sha256 == sha256_of_files([path, data])
    data.write_bytes((WEIGHTS + 1).tobytes())
    assert read_onnx(path).sha256 != first.sha256


def test_external_data_of_a_function_counts_for_size_and_digest(tmp_path: Path):
    data = tmp_path / "weights.bin"
    data.write_bytes(WEIGHTS.tobytes())
    path = save(external_model(external_tensor("weights.bin"), "function"), tmp_path / "model.onnx")
    assert read_onnx(path).size_bytes == path.stat().st_size + 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: Contract((TensorSpec("z", "float32", ("batch", 4)),), c.outputs, c.kind), r"inputs \['z'\] but .* \['x'\]"),
        (lambda c: Contract(c.inputs * 1 + (TensorSpec("z", "float32", ()),), c.outputs, c.kind), r"inputs \['x', 'z'\] but"),
        (lambda c: Contract(c.inputs, (TensorSpec("z", "float32", ("batch", 3)),), c.kind), r"outputs \['z'\] but .*'logits'"),
    ],
    ids=["another input", "one input more", "another output"],
)
def test_a_contract_that_does_not_fit_the_graph(
    tmp_path: Path, linear: onnx.ModelProto, change: Callable[[Contract], Contract], message: str
):
    path = save(linear, tmp_path / "model.onnx", {CONTRACT_KEY: change(CONTRACT).to_json()})
    with pytest.raises(InputError, match=f"{message}.*the file was edited after it was made; remove the metadata"):
        read_onnx(path)


def test_a_contract_that_does_not_fit_is_a_contract_error(tmp_path: Path, linear: onnx.ModelProto):
    other = Contract((TensorSpec("z", "float32", ("batch", 4)),), CONTRACT.outputs, CONTRACT.kind)
    with pytest.raises(ContractError):
        read_onnx(save(linear, tmp_path / "model.onnx", {CONTRACT_KEY: other.to_json()}))


@pytest.mark.parametrize(
    "contract",
    [
        Contract((TensorSpec("x", "int64", ("batch", 4)),), CONTRACT.outputs, Kind.LOGITS),
        Contract((TensorSpec("x", "float32", ("batch", 5)),), CONTRACT.outputs, Kind.LOGITS),
        Contract((TensorSpec("x", "float32", ("batch", 2, 2)),), CONTRACT.outputs, Kind.LOGITS),
        Contract(CONTRACT.inputs, (TensorSpec("logits", "float32", ("batch", 7)),), Kind.LOGITS),
    ],
)
def test_a_contract_of_other_dtypes_or_shapes_is_refused(tmp_path: Path, linear: onnx.ModelProto, contract: Contract):
    with pytest.raises(InputError):
        read_onnx(save(linear, tmp_path / "model.onnx", {CONTRACT_KEY: contract.to_json()}))


def test_a_contract_may_not_leave_inputs_of_the_graph_out(tmp_path: Path, linear: onnx.ModelProto):
    linear.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["batch", 4]))
    path = save(linear, tmp_path / "model.onnx", {CONTRACT_KEY: CONTRACT.to_json()})
    with pytest.raises(InputError, match=r"names the inputs \['x'\] but the graph has \['x', 'z'\]"):
        read_onnx(path)


def test_a_contract_may_leave_outputs_of_the_graph_out(tmp_path: Path, linear: onnx.ModelProto):
    linear.graph.output.append(helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, ["batch", 3]))
    path = save(linear, tmp_path / "model.onnx", {CONTRACT_KEY: CONTRACT.to_json()})
    assert read_onnx(path).contract.outputs == CONTRACT.outputs


def test_initializers_that_are_inputs_too_are_no_inputs_of_the_contract(tmp_path: Path, linear: onnx.ModelProto):
    linear.graph.input.append(helper.make_tensor_value_info("W", onnx.TensorProto.FLOAT, [4, 3]))
    path = save(linear, tmp_path / "model.onnx", {CONTRACT_KEY: CONTRACT.to_json()})
    assert read_onnx(path).contract.inputs == CONTRACT.inputs


def test_a_damaged_contract_is_a_contract_error(tmp_path: Path, linear: onnx.ModelProto):
    path = save(linear, tmp_path / "model.onnx", {CONTRACT_KEY: '{"version": 1'})
    with pytest.raises(ContractError, match="is not a contract in JSON"):
        read_onnx(path)


def test_a_graph_that_is_not_valid_is_refused(tmp_path: Path, linear: onnx.ModelProto):
    linear.graph.node[0].op_type = "NoSuchOp"
    with pytest.raises(SourceError, match=r"is not a valid ONNX model: .*NoSuchOp") as caught:
        read_onnx(save(linear, tmp_path / "model.onnx"))
    assert "\n" not in str(caught.value)


def sparse_model() -> onnx.ModelProto:
    """``logits = W`` with a sparse W, beside ``x``."""
    values = helper.make_tensor("W", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("W_indices", onnx.TensorProto.INT64, [2], [0, 7])
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "W"], ["logits"])], "sparse", [x], [logits])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_sparse_initializers_are_made_dense_rather_than_dropped(tmp_path: Path):
    graph = load_graph(save(sparse_model(), tmp_path / "model.onnx")).graph
    expected = np.zeros((4, 3), np.float32)
    expected[0, 0], expected[2, 1] = 1, 2
    np.testing.assert_array_equal(graph.initializers["W"].const_value.numpy(), expected)


def test_one_domain_imported_at_two_versions_is_refused(tmp_path: Path, linear: onnx.ModelProto):
    linear.opset_import.append(helper.make_opsetid("ai.onnx", linear.opset_import[0].version + 1))
    with pytest.raises(SourceError, match=r"imports the operators 'ai\.onnx' at the versions \d+ and \d+: export it again"):
        read_onnx(save(linear, tmp_path / "model.onnx"))


def test_a_written_file_computes_the_same_and_keeps_its_metadata(tmp_path: Path, linear: onnx.ModelProto):
    source = save(linear, tmp_path / "source.onnx", {"mine": "kept"})
    target = tmp_path / "new" / "model.onnx"
    seen: list[tuple[str, bool]] = []

    def prove(path: Path) -> dict[str, str]:
        seen.append((read_onnx(path).metadata["mine"], target.exists()))
        np.testing.assert_array_equal(run(path), run(source))
        return {"monograph.proof": "parity"}

    write_onnx(load_graph(source), target, {CONTRACT_KEY: CONTRACT.to_json(), TOKENIZER_KEY: "ß"}, prove)
    assert seen == [("kept", False)], "proven once, before it is published"
    file = read_onnx(target)
    assert file.contract == CONTRACT
    assert file.metadata == {
        "mine": "kept",
        CONTRACT_KEY: CONTRACT.to_json(),
        TOKENIZER_KEY: "ß",
        "monograph.proof": "parity",
    }
    np.testing.assert_array_equal(run(target), run(source))
    assert names_in(target.parent) == ["model.onnx"]


def test_what_the_proof_says_replaces_what_was_said_before(tmp_path: Path, linear: onnx.ModelProto):
    source = save(linear, tmp_path / "source.onnx", {"monograph.proof": "of the source"})
    write_onnx(load_graph(source), tmp_path / "model.onnx", {}, lambda path: {"monograph.proof": "of this file"})
    assert read_onnx(tmp_path / "model.onnx").metadata == {"monograph.proof": "of this file"}


@pytest.mark.parametrize("error", [ParityError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("large", [False, True])
def test_a_refused_proof_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path,
    linear: onnx.ModelProto,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    large: bool,
):
    monkeypatch.setattr(onnx_file, "LARGEST_INLINE_BYTES", 16 if large else 1_000_000)
    target = tmp_path / "model.onnx"
    target.write_bytes(b"the old file")

    def fail(path: Path) -> dict[str, str]:
        raise error("refused")

    with pytest.raises(error, match="refused"):
        write_onnx(load_graph(save(linear, tmp_path / "source.onnx")), target, {}, fail)
    assert target.read_bytes() == b"the old file"
    assert names_in(tmp_path) == ["model.onnx", "source.onnx"]


def test_a_refused_proof_makes_no_file(tmp_path: Path, linear: onnx.ModelProto):
    model = load_graph(save(linear, tmp_path / "source.onnx"))
    with pytest.raises(ParityError):
        write_onnx(model, tmp_path / "model.onnx", {}, refuse)
    assert names_in(tmp_path) == ["source.onnx"]


def test_an_invalid_graph_is_never_published(tmp_path: Path, linear: onnx.ModelProto):
    model = load_graph(save(linear, tmp_path / "source.onnx"))
    model.graph.node(0).op_type = "NoSuchOp"
    with pytest.raises(onnx.checker.ValidationError):
        write_onnx(model, tmp_path / "model.onnx", {}, accept)
    assert names_in(tmp_path) == ["source.onnx"]


def source_with_external_data(folder: Path, place: str = "initializer") -> Path:
    folder.mkdir()
    (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
    return save(external_model(external_tensor("weights.bin"), place), folder / "model.onnx")


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "function"])
def test_a_written_file_needs_its_sources_folder_no_more(tmp_path: Path, place: str):
    source = source_with_external_data(tmp_path / "source", place)
    target = tmp_path / "new" / "model.onnx"
    write_onnx(load_graph(source), target, {}, accept)
    shutil.rmtree(tmp_path / "source")
    assert names_in(target.parent) == ["model.onnx"]
    np.testing.assert_array_equal(run(target), ROWS @ WEIGHTS)


def test_a_file_may_be_written_over_its_own_source(tmp_path: Path):
    source = source_with_external_data(tmp_path / "source")
    write_onnx(load_graph(source), source, {"written": "again"}, accept)
    (tmp_path / "source" / "weights.bin").unlink()
    assert read_onnx(source).metadata == {"written": "again"}
    np.testing.assert_array_equal(run(source), ROWS @ WEIGHTS)


@pytest.mark.usefixtures("inline_at_most_16_bytes")
def test_large_weights_go_into_one_file_beside_it(tmp_path: Path):
    source = source_with_external_data(tmp_path / "source")
    target = tmp_path / "new" / "model.onnx"
    write_onnx(load_graph(source), target, {"mine": "kept"}, lambda path: {"proof": "made"})
    shutil.rmtree(tmp_path / "source")

    data, model = sorted(target.parent.iterdir(), key=lambda path: path == target)
    assert model == target
    assert data.name.startswith("model.onnx.")
    assert data.suffix == ".data"
    assert data.stat().st_size >= 512
    file = read_onnx(target)
    assert file.size_bytes == model.stat().st_size + data.stat().st_size
    assert file.metadata == {"mine": "kept", "proof": "made"}
    np.testing.assert_array_equal(run(target), ROWS @ WEIGHTS)

    moved = tmp_path / "moved"
    target.parent.rename(moved)
    np.testing.assert_array_equal(run(moved / "model.onnx"), ROWS @ WEIGHTS)


@pytest.mark.usefixtures("inline_at_most_16_bytes")
def test_a_new_version_never_overwrites_the_data_that_the_old_model_reads(tmp_path: Path):
    source = source_with_external_data(tmp_path / "source")
    target = tmp_path / "new" / "model.onnx"
    write_onnx(load_graph(source), target, {}, accept)
    old_model, old_data = target.read_bytes(), next(target.parent.glob("*.data"))

    model = load_graph(source)
    model.graph.initializers["W"].const_value = ir.tensor(WEIGHTS + 1)
    write_onnx(model, target, {}, accept)
    np.testing.assert_array_equal(run(target), ROWS @ (WEIGHTS + 1))

    (target.parent / "old.onnx").write_bytes(old_model)
    assert old_data.exists()
    np.testing.assert_array_equal(run(target.parent / "old.onnx"), ROWS @ WEIGHTS)


@pytest.mark.parametrize(("size_bytes", "is_inline"), [(512, True), (511, False)])
def test_the_limit_is_the_largest_size_that_is_inline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int, is_inline: bool
):
    monkeypatch.setattr(onnx_file, "LARGEST_INLINE_BYTES", size_bytes)
    source = source_with_external_data(tmp_path / "source")
    write_onnx(load_graph(source), tmp_path / "new" / "model.onnx", {}, accept)
    assert len(names_in(tmp_path / "new")) == (1 if is_inline else 2)


def test_external_tensors_stay_on_disk_until_they_are_needed(tmp_path: Path):
    model = load_graph(source_with_external_data(tmp_path / "source"))
    assert isinstance(model.graph.initializers["W"].const_value, ir.ExternalTensor)


def test_a_weight_that_somebody_still_looks_at_is_written_too(tmp_path: Path):
    """Its file is mapped into memory, and cannot be closed while an array shows a part of it."""
    model = load_graph(source_with_external_data(tmp_path / "source"))
    weight = model.graph.initializers["W"].const_value
    assert weight is not None
    view = weight.numpy()[:2]
    write_onnx(model, tmp_path / "new" / "model.onnx", {}, accept)
    np.testing.assert_array_equal(run(tmp_path / "new" / "model.onnx"), ROWS @ WEIGHTS)
    np.testing.assert_array_equal(view, WEIGHTS[:2])
