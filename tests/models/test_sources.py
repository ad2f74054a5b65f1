import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from monograph.errors import ConfigError, ContractError, InputError, SourceError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.sources import Scheme, load_python_model, parse_class_names, parse_input, parse_source
from monograph.models.torch_model import PICKLE_SUFFIXES, TorchModel, load_weights, save_weights

FACTORIES = """
import torch
from torch import nn
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.torch_model import TorchModel

X = TensorSpec("x", "float32", ("batch", 4))
LOGITS = TensorSpec("logits", "float32", ("batch", 3))
CONTRACT = Contract((X,), (LOGITS,), Kind.LOGITS, ("a", "b", "c"))

class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, *inputs):
        return self.function(*inputs)

def bare(width=3): return nn.Linear(4, width)
def pair(): return nn.Linear(4, 3), CONTRACT
def model(): return TorchModel(nn.Linear(4, 3), CONTRACT, "its own name", "{}")
def number(): return 3
def wrong_pair(): return nn.Linear(4, 3), {"kind": "logits"}
def triple(): return nn.Linear(4, 3), CONTRACT, 1
def needs(path): return nn.Linear(4, 3)

def two_outputs(): return Module(lambda x: (x * 2, x.sum(1).long()))
def mapping(): return Module(lambda x: {"hidden": x.reshape(-1, 2, 2), "nothing": None, "sum": x.sum(1)})
def two_inputs(): return Module(lambda ids, x: x[:, :2] + ids[:, :2])
def nothing(): return Module(lambda x: None)
def empty(): return Module(lambda x: [])
def normed(): return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
def dropout(): return nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3))
"""

X = TensorSpec("x", "float32", ("batch", 4))


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module ``factories`` that is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "monograph_test_factories.py").write_text(FACTORIES)
    yield tmp_path
    sys.modules.pop("monograph_test_factories", None)


def load(name: str, **options) -> TorchModel:
    return load_python_model(parse_source(f"py:monograph_test_factories:{name}"), **options)


def network(hidden: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.BatchNorm1d(hidden), nn.Linear(hidden, 3))


def weights_of(module: nn.Module) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    ("text", "scheme", "location", "name"),
    [
        ("model.onnx", Scheme.ONNX, "", "model"),
        ("some/folder/my.model.onnx", Scheme.ONNX, "", "my.model"),
        ("hf:google/vit", Scheme.HUGGING_FACE, "google/vit", "vit"),
        ("hf:./folder/", Scheme.HUGGING_FACE, "./folder/", "folder"),
        ("hf:bert", Scheme.HUGGING_FACE, "bert", "bert"),
        ("hf:model.onnx", Scheme.HUGGING_FACE, "model.onnx", "model.onnx"),
        ("py:package.module:build", Scheme.PYTHON, "package.module:build", "build"),
    ],
)
def test_sources_are_told_apart(text: str, scheme: Scheme, location: str, name: str):
    source = parse_source(text)
    assert (source.scheme, source.text, source.name) == (scheme, text, name)
    if scheme is Scheme.ONNX:
        assert source.path == Path(text)
    else:
        assert source.location == location


@pytest.mark.parametrize("text", ["", ":", "hf:", "py:", "onnx:model", "timm:resnet18", "model.pt", "model.onnx.gz", "resnet"])
def test_what_is_no_source_says_what_would_be(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"expected file\.onnx, hf:ID_OR_FOLDER or py:package\.module:factory"):
        parse_source(text)


def test_a_folder_is_pointed_to_hf(tmp_path: Path):
    with pytest.raises(SourceError, match=f"for a Hugging Face folder write hf:{tmp_path}"):
        parse_source(str(tmp_path))


def test_a_file_with_another_suffix_is_said_to_be_one(tmp_path: Path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(SourceError, match=r"model\.bin does not end in \.onnx: rename it if it is an ONNX file"):
        parse_source(str(tmp_path / "model.bin"))


def test_a_torch_model_is_taken_as_it_is(factories: Path):
    model = load("model")
    assert (model.name, model.tokenizer_json) == ("its own name", "{}")
    assert model.contract.class_names == ("a", "b", "c")
    assert model({"x": np.ones((2, 4), np.float32)})["logits"].shape == (2, 3)


def test_a_module_with_its_contract_is_named_after_the_factory(factories: Path):
    model = load("pair")
    assert model.name == "pair"
    assert model.contract.class_names == ("a", "b", "c")
    assert model.contract.assumed == ()
    assert isinstance(model.module, nn.Linear)


def test_a_bare_module_gets_its_contract_from_one_run(factories: Path):
    model = load("bare", inputs=[X])
    assert model.contract == Contract((X,), (TensorSpec("logits", "float32", ("batch", 3)),), Kind.LOGITS)
    assert model.contract.assumed == (
        "py:monograph_test_factories:bare states no contract: its first output is taken for logits, "
        "its outputs' shapes from one run",
    )


@pytest.mark.parametrize(("width", "kind"), [(2, Kind.LOGITS), (1, Kind.REGRESSION)])
def test_one_number_a_row_is_a_regression(factories: Path, width: int, kind: Kind):
    contract = load("bare", inputs=[X], arguments={"width": width}).contract
    assert contract.kind is kind
    assert contract.output == TensorSpec(kind.value, "float32", ("batch", width))


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("two_outputs", (TensorSpec("logits", "float32", ("batch", 4)), TensorSpec("output_1", "int64", ("batch",)))),
        ("mapping", (TensorSpec("regression", "float32", ("batch", 2, 2)), TensorSpec("output_1", "float32", ("batch",)))),
    ],
)
def test_every_tensor_that_a_bare_module_returns_is_an_output(factories: Path, name: str, outputs: tuple[TensorSpec, ...]):
    model = load(name, inputs=[X])
    assert model.contract.outputs == outputs
    given = model({"x": np.ones((5, 4), np.float32)})
    assert {key: (str(value.dtype), value.shape) for key, value in given.items()} == {
        spec.name: (spec.dtype, (5, *spec.shape[1:])) for spec in outputs
    }


def test_the_run_that_tells_the_contract_leaves_the_weights_as_they_are(factories: Path):
    state = load("normed", inputs=[X]).module.state_dict()
    assert state["0.num_batches_tracked"] == 0
    assert state["0.running_mean"].tolist() == [0, 0, 0, 0]


def test_inputs_go_in_by_position_whatever_the_order_of_the_arrays(factories: Path):
    ids = TensorSpec("ids", "int64", ("batch", "sequence"), upper_bound=3)
    model = load("two_inputs", inputs=[ids, X])
    arrays = {"x": np.full((1, 4), 0.5, np.float32), "ids": np.array([[1, 2, 0]])}
    assert model(arrays)["logits"].tolist() == [[1.5, 2.5]]


def test_a_bare_module_without_inputs_says_what_is_missing(factories: Path):
    with pytest.raises(ContractError, match=r"say what it takes, for example --input pixels:float32:batch,3,224,224"):
        load("bare")


@pytest.mark.parametrize(("name", "made"), [("number", "int"), ("wrong_pair", "tuple"), ("triple", "tuple")])
def test_another_return_type_is_refused(factories: Path, name: str, made: str):
    with pytest.raises(SourceError, match=f"{name} returned {made}, expected an nn.Module, alone or with its Contract"):
        load(name, inputs=[X])


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_module_that_returns_no_tensor_is_refused(factories: Path, name: str):
    with pytest.raises(InputError):
        load(name, inputs=[X])


def test_inputs_that_the_module_cannot_take_are_refused(factories: Path):
    with pytest.raises(InputError):
        load("bare", inputs=[TensorSpec("x", "float32", ("batch", 5))])


def test_a_fixed_batch_is_fixed_in_the_outputs_too(factories: Path):
    assert load("bare", inputs=[TensorSpec("x", "float32", (2, 4))]).contract.output.shape == (2, 3)


@pytest.mark.parametrize(("name", "arguments"), [("bare", {"depth": 3}), ("needs", {})])
def test_wrong_arguments_are_a_config_error(factories: Path, name: str, arguments: dict[str, int]):
    with pytest.raises(ConfigError, match=rf"{name} was called with arguments \{{.*\}}: .*argument"):
        load(name, arguments=arguments, inputs=[X])


def test_a_missing_factory_is_a_source_error(factories: Path):
    with pytest.raises(SourceError, match="has no 'bear'"):
        load("bear")


def test_a_model_computes_in_eval_mode_and_leaves_no_gradients(factories: Path):
    model = load("dropout", inputs=[X])
    model.module.train()
    rows = {"x": np.ones((6, 4), np.float32)}
    first, second = model(rows)["logits"], model(rows)["logits"]
    assert np.array_equal(first, second)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_arrays_that_are_not_contiguous_are_taken(factories: Path):
    model = load("pair")
    array = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert np.array_equal(model({"x": array.T})["logits"], model({"x": array.T.copy()})["logits"])


def test_a_module_that_returns_more_than_its_contract_names_is_refused():
    module = nn.Linear(4, 3)
    contract = Contract((X,), (TensorSpec("a", "float32", ("batch", 3)), TensorSpec("b", "float32", ("batch",))), Kind.LOGITS)
    with pytest.raises(ContractError, match=r"m returns 1 tensors but its contract names 2 outputs \(a, b\): name every one"):
        TorchModel(module, contract, "m")({"x": np.ones((1, 4), np.float32)})


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("pixels:float32:batch,3,224,224", TensorSpec("pixels", "float32", ("batch", 3, 224, 224))),
        ("ids:int64:batch,sequence", TensorSpec("ids", "int64", ("batch", "sequence"))),
        ("x:float32: batch , 3", TensorSpec("x", "float32", ("batch", 3))),
        ("x:uint8:1", TensorSpec("x", "uint8", (1,))),
    ],
)
def test_an_input_is_read(text: str, spec: TensorSpec):
    assert parse_input(text) == spec


@pytest.mark.parametrize("text", ["", "x", "x:float32", "x:float32:", ":float32:1", "x::1", "x:float32:1:2", "::"])
def test_an_input_of_another_form_says_the_form(text: str):
    with pytest.raises(ConfigError, match="is not of the form NAME:DTYPE:DIM,DIM,… such as pixels:float32:batch,3,224,224"):
        parse_input(text)


def test_an_input_of_no_dtype_is_refused():
    with pytest.raises(InputError, match="'float31', expected a numpy dtype name"):
        parse_input("x:float31:batch")


@pytest.mark.parametrize("dims", ["batch,,3", ",", "-1,3", "1.5", "²"])
def test_an_input_of_no_dimension_is_refused(dims: str):
    with pytest.raises(InputError):
        parse_input(f"x:float32:{dims}")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("names.txt", "cat\ndog\n\n ibis \n", ("cat", "dog", "ibis")),
        ("names.txt", "a,b\r\nÄ\r\n", ("a,b", "Ä")),
        ("names.json", '["cat", "dog, wet"]', ("cat", "dog, wet")),
        ("names.json", "[1, 2]", ("1", "2")),
    ],
)
def test_class_names_from_a_file(tmp_path: Path, name: str, content: str, expected: tuple[str, ...]):
    (tmp_path / name).write_bytes(content.encode())
    assert parse_class_names(str(tmp_path / name)) == expected


def test_class_names_from_the_option_itself():
    assert parse_class_names("cat, dog,ibis,") == ("cat", "dog", "ibis")


@pytest.mark.parametrize(
    ("name", "content"),
    [("names.json", b"["), ("names.json", b"\xff\xfe"), ("names.txt", b"\xff\xfe\x00"), ("missing.txt", None)],
)
def test_class_names_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="class names cannot be read from"):
        parse_class_names(str(tmp_path / name))


@pytest.mark.parametrize(("text", "count"), [("", 0), ("cat", 1), (" , ,", 0)])
def test_fewer_than_two_classes_are_refused(text: str, count: int):
    with pytest.raises(ConfigError, match=f"names {count} class, expected two or more"):
        parse_class_names(text)


@pytest.mark.parametrize("content", ["5", "null", '"abc"', '{"0": "cat", "1": "dog"}', '[["cat"], ["dog"]]'])
def test_class_names_in_json_are_a_list_of_texts(tmp_path: Path, content: str):
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(ConfigError):
        parse_class_names(str(tmp_path / "names.json"))


def test_weights_come_back_from_safetensors(tmp_path: Path):
    saved, loaded = network(), network()
    assert weights_of(saved) != weights_of(loaded)
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert weights_of(loaded) == weights_of(saved)


def test_safetensors_may_have_any_suffix_that_is_no_pickles(tmp_path: Path):
    saved, loaded = network(), network()
    save_weights(saved, tmp_path / "weights.v2")
    load_weights(loaded, tmp_path / "weights.v2", allow_pickle=True)
    assert weights_of(loaded) == weights_of(saved)


def test_weights_are_loaded_into_what_the_factory_made(factories: Path):
    source = nn.Linear(4, 3)
    save_weights(source, factories / "weights.safetensors")
    model = load("pair", weights=factories / "weights.safetensors")
    rows = torch.ones(2, 4)
    np.testing.assert_allclose(model({"x": rows.numpy()})["logits"], source(rows).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("suffix", PICKLE_SUFFIXES)
def test_a_pickle_is_read_only_on_request(tmp_path: Path, suffix: str):
    saved, loaded = network(), network()
    before = weights_of(loaded)
    path = tmp_path / f"weights{suffix}"
    torch.save(saved.state_dict(), path)
    with pytest.raises(SourceError, match=r"is a pickle, which can run code .*: convert it to safetensors, or pass --allow"):
        load_weights(loaded, path)
    assert weights_of(loaded) == before
    load_weights(loaded, path, allow_pickle=True)
    assert weights_of(loaded) == weights_of(saved)


def test_the_factory_route_refuses_a_pickle_too(factories: Path):
    torch.save(nn.Linear(4, 3).state_dict(), factories / "weights.pt")
    with pytest.raises(SourceError, match="is a pickle"):
        load("pair", weights=factories / "weights.pt")
    load("pair", weights=factories / "weights.pt", allow_pickle=True)


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def pickled(malicious: Malicious, path: Path, how: str) -> None:
    if how == "pickle":
        path.write_bytes(pickle.dumps(malicious))
    elif how == "state dict":
        path.write_bytes(pickle.dumps({"0.weight": malicious}))
    else:
        torch.save({"0.weight": malicious}, path, _use_new_zipfile_serialization=how == "torch")


HOW = ["pickle", "state dict", "torch", "old torch"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("suffix", [*PICKLE_SUFFIXES, ".safetensors", ".weights", ""])
def test_a_malicious_pickle_never_runs(tmp_path: Path, how: str, allow_pickle: bool, suffix: str):
    victim = tmp_path / "made by the pickle"
    path = tmp_path / f"weights{suffix}"
    pickled(Malicious(victim), path, how)
    with pytest.raises(SourceError):
        load_weights(network(), path, allow_pickle=allow_pickle)
    assert not victim.exists()


@pytest.mark.parametrize("how", HOW)
def test_the_malicious_pickle_would_run_where_nothing_stops_it(tmp_path: Path, how: str):
    """Else the test above could not fail."""
    victim = tmp_path / "made by the pickle"
    pickled(Malicious(victim), tmp_path / "weights.pt", how)
    if how in ("pickle", "state dict"):
        made = pickle.loads((tmp_path / "weights.pt").read_bytes())
    else:
        made = torch.load(tmp_path / "weights.pt", weights_only=False)
    (made["0.weight"] if isinstance(made, dict) else made).close()
    assert victim.exists()


def test_a_missing_weights_file(tmp_path: Path):
    for name in ("weights.safetensors", "weights.pt", "."):
        with pytest.raises(SourceError, match="no such weights file"):
            load_weights(network(), tmp_path / name, allow_pickle=True)


def test_safetensors_cut_short_anywhere(tmp_path: Path):
    save_weights(network(), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "weights.safetensors"
    module = network()
    before = weights_of(module)
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match="is not a safetensors file, or is cut short"):
            load_weights(module, path)
    assert weights_of(module) == before


def test_a_pickle_cut_short(tmp_path: Path):
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    path = tmp_path / "weights.pt"
    for size in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match="holds more than tensors, or is cut short"):
            load_weights(network(), path, allow_pickle=True)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (network(hidden=6), "size mismatch for 0.weight"),
        (nn.Linear(4, 3), "Missing key.*0.weight.* Unexpected key.*weight"),
        (nn.Sequential(*network(), nn.Linear(3, 3)), "Unexpected key.*4.weight"),
        (network()[:3], "Missing key.*3.weight"),
    ],
    ids=["another size", "other names", "a layer more", "a layer less"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, other: nn.Module, reason: str, suffix: str):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(other.state_dict(), path)
    else:
        save_weights(other, path)
    with pytest.raises(SourceError, match=rf"weights\{suffix} does not fit the model: .*{reason}") as caught:
        load_weights(network(), path, allow_pickle=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], "text", None, torch.ones(2)], ids=["list", "text", "none", "tensor"])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(SourceError, match=r"weights\.pt holds a .*, expected a state dict"):
        load_weights(network(), tmp_path / "weights.pt", allow_pickle=True)


def test_a_pickled_module_is_refused_in_one_line(tmp_path: Path):
    torch.save(network(), tmp_path / "weights.pt")
    with pytest.raises(SourceError, match="holds more than tensors") as caught:
        load_weights(network(), tmp_path / "weights.pt", allow_pickle=True)
    assert "\n" not in str(caught.value)


def test_the_message_about_an_unsafe_pickle_does_not_advise_to_load_it(tmp_path: Path):
    torch.save(network(), tmp_path / "weights.pt")
    with pytest.raises(SourceError) as caught:
        load_weights(network(), tmp_path / "weights.pt", allow_pickle=True)
    assert "\x1b" not in str(caught.value)
    assert "can still be loaded" not in str(caught.value)


def test_a_mapping_of_numbers_is_refused(tmp_path: Path):
    torch.save({0: torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(SourceError):
        load_weights(network(), tmp_path / "weights.pt", allow_pickle=True)


@settings(deadline=None, max_examples=100, phases=(Phase.generate, Phase.shrink))
@given(content=st.binary(max_size=100))
def test_arbitrary_bytes_are_no_safetensors(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "arbitrary.safetensors"
    path.write_bytes(content)
    with pytest.raises(SourceError):
        load_weights(nn.Linear(4, 3), path)


@settings(deadline=None, max_examples=300, derandomize=True, phases=(Phase.generate,), database=None)
@given(content=st.binary(max_size=40).map(b"\x80\x02".__add__))
def test_arbitrary_bytes_are_no_pickle(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "arbitrary.pt"
    path.write_bytes(content)
    with pytest.raises(SourceError):
        load_weights(nn.Linear(4, 3), path, allow_pickle=True)
