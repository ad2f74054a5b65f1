import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from monograph.errors import ContractError, ParityError
from monograph.export import heads
from monograph.export.heads import attach_head, features_spec, trunk_outputs
from monograph.export.trace import PROOF_KEY, Exported, export_torch
from monograph.models.contract import CONTRACT_KEY, Contract, Kind, TensorSpec, TextPreprocessing, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, add_metadata, read_onnx
from monograph.models.seen import mark_seen, read_seen, seen
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.runtime import apart
from monograph.runtime.golden import GOLDEN_KEY
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
BATCH_SIZES = (1, 3, 7)
MLP = """<ir_version: 8, opset_import: ["": {opset}]>
mlp (float[batch, 4] x) => (float[batch, 3] logits)
{{ hidden = Gemm(x, w, b)
   act = Relu(hidden)
   logits = MatMul(act, weight) }}"""
ARRAYS = {
    "w": np.random.default_rng(0).standard_normal((4, 6), dtype=np.float32),
    "b": np.random.default_rng(1).standard_normal(6, dtype=np.float32),
    "weight": np.random.default_rng(2).standard_normal((6, 3), dtype=np.float32),
}


class MaskedMean(nn.Linear):
    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return super().forward((tokens * mask).sum(1) / mask.sum(1))


def linear_head(width: int, *, classes: int = 2, output: str = "logits", batch: int | str = "n") -> TorchModel:
    contract = Contract(
        (TensorSpec("features", "float32", (batch, width)),),
        (TensorSpec(output, "float32", (batch, classes)),),
        Kind.LOGITS,
        tuple(f"class {number}" for number in range(classes)),
    )
    return TorchModel(nn.Linear(width, classes), contract, "head")


def masked_head(width: int, *, mask: str = "attention_mask", dtype: str = "int64") -> TorchModel:
    inputs = (TensorSpec("tokens", "float32", ("n", "length", width)), TensorSpec(mask, dtype, ("n", "length")))
    return TorchModel(MaskedMean(width, 2), Contract(inputs, (TensorSpec("logits", "float32", ("n", 2)),), Kind.LOGITS), "pooled")


def graph_of(path: Path) -> onnx.GraphProto:
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path).graph


def assert_head_of(made: Exported, head: TorchModel, features_of: Callable[[Mapping[str, Array]], Array]) -> None:
    """The written file computes the head of the features, at other batch sizes and lengths than the proof's."""
    session = open_session(made.path)
    for size in BATCH_SIZES:
        inputs = random_inputs(made.contract, size, np.random.default_rng(size), sequence_length=9)
        expected = head({**inputs, head.contract.inputs[0].name: features_of(inputs)})
        got = session(inputs)
        assert list(got) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, atol=1e-5)


@pytest.fixture(scope="module")
def picture_trunk(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchModel, OnnxFile, str]:
    """A convolutional student as ONNX, with the name of what its last Gemm reads."""
    torch.manual_seed(0)
    module, contract = conv((1, 12, 12), 5, width=4)
    model = TorchModel(module, contract.with_class_names(("a", "b", "c", "d", "e")), "conv")
    path = tmp_path_factory.mktemp("trunk") / "conv.onnx"
    export_torch(model, path)
    add_metadata(path, {"owner": "us"})
    (gemm,) = (node for node in onnx.load(path).graph.node if node.op_type == "Gemm")
    return model, read_onnx(path), gemm.input[0]


@pytest.fixture(scope="module")
def text_trunk(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchModel, OnnxFile]:
    """A tiny random BERT that gives its last hidden state."""
    import transformers

    class LastHiddenState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            config = transformers.BertConfig(**sizes, intermediate_size=32)
            self.bert = transformers.BertModel(config, add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    shape = ("batch", "sequence")
    inputs = tuple(
        TensorSpec(role, "int64", shape, TextPreprocessing(role, 48), bound)
        for role, bound in (("input_ids", 40), ("attention_mask", 2))
    )
    output = TensorSpec("last_hidden_state", "float32", (*shape, 16))
    model = TorchModel(LastHiddenState(), Contract(inputs, (output,), Kind.EMBEDDING), "bert", '{"model": {}}')
    path = tmp_path_factory.mktemp("trunk") / "bert.onnx"
    export_torch(model, path, dynamo=False)
    return model, read_onnx(path)


class TestPictures:
    def test_inner_tensor(self, picture_trunk: tuple[TorchModel, OnnxFile, str], tmp_path: Path):
        _, trunk, features = picture_trunk
        spec = features_spec(trunk, features)
        assert spec == TensorSpec(features, "float32", ("batch", 16))

        head = linear_head(16)
        made = attach_head(trunk, head, tmp_path / "out" / "new.onnx", features=features)
        file = read_onnx(made.path)
        assert file.contract == made.contract
        assert file.contract.inputs == trunk.contract.inputs
        assert file.contract.outputs == (TensorSpec("logits", "float32", ("batch", 2)),)
        assert file.contract.class_names == ("class 0", "class 1")
        assert file.opset == trunk.opset
        assert {batch.batch_size for batch in made.proof.batches} == {1, 2, 5}

        def features_of(inputs: Mapping[str, Array]) -> Array:
            return trunk_outputs(trunk, features, Rows(inputs))

        assert_head_of(made, head, features_of)
        assert [path.name for path in made.path.parent.iterdir()] == ["new.onnx"]
        graph = graph_of(made.path)
        assert sum(node.op_type == "Gemm" for node in graph.node) == 1, "the old head is gone"
        assert sum(len(tensor.dims) == 2 for tensor in graph.initializer) == 1

    def test_features_are_those_of_pytorch(self, picture_trunk: tuple[TorchModel, OnnxFile, str]):
        model, trunk, features = picture_trunk
        inputs = random_inputs(trunk.contract, 70, np.random.default_rng(3))
        outputs = trunk_outputs(trunk, features, Rows(inputs))
        assert outputs.shape == (70, 16)
        assert outputs.dtype == np.float32
        last = [module for module in model.module.modules() if isinstance(module, nn.Linear)][-1]
        expected = last(torch.from_numpy(outputs)).detach().numpy()
        np.testing.assert_allclose(model(inputs)["logits"], expected, atol=1e-5)

    def test_metadata(self, picture_trunk: tuple[TorchModel, OnnxFile, str], tmp_path: Path):
        _, trunk, features = picture_trunk
        rows = Rows(random_inputs(trunk.contract, 12, np.random.default_rng(0)))
        copy = tmp_path / "seen.onnx"
        copy.write_bytes(trunk.path.read_bytes())
        mark_seen(copy, seen("training", rows))
        trunk = read_onnx(copy)
        file = read_onnx(attach_head(trunk, linear_head(16), tmp_path / "new.onnx", features=features, rows=rows).path)
        assert file.metadata["owner"] == "us"
        assert read_seen(file).uses == {"training": 12}
        proof = json.loads(file.metadata[PROOF_KEY])
        assert proof["reference"] == "seen.onnx in ONNX Runtime and head in PyTorch"
        assert {batch["rows"] for batch in proof["batches"]} == {"real"}
        for key in (CONTRACT_KEY, PROOF_KEY, GOLDEN_KEY):
            assert file.metadata[key] != trunk.metadata[key]

    def test_another_computation_is_refused(self, picture_trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        _, trunk, features = picture_trunk
        head = linear_head(16)

        def export_another(model: TorchModel, *arguments: Any, **options: Any) -> Exported:
            made = export_torch(model, *arguments, **options)
            with torch.no_grad():
                model.module.bias += 1
            return made

        monkeypatch.setattr(heads, "export_torch", export_another)
        with pytest.raises(ParityError, match=r"does not compute the same as conv\.onnx in ONNX Runtime and head in PyTorch"):
            attach_head(trunk, head, tmp_path / "new.onnx", features=features)
        assert not list(tmp_path.iterdir())


class TestTexts:
    def test_masked_mean(self, text_trunk: tuple[TorchModel, OnnxFile], tmp_path: Path):
        model, trunk = text_trunk
        assert features_spec(trunk, "last_hidden_state") == trunk.contract.output
        head = masked_head(16)
        made = attach_head(trunk, head, tmp_path / "new.onnx", features="last_hidden_state")
        file = read_onnx(made.path)
        assert file.contract.inputs == trunk.contract.inputs
        assert file.contract.outputs == (TensorSpec("logits", "float32", ("batch", 2)),)
        assert file.tokenizer_json == trunk.tokenizer_json
        assert_head_of(made, head, lambda inputs: model(inputs)["last_hidden_state"])
        graph_of(made.path)

    def test_inner_tensor_with_a_sequence(self, text_trunk: tuple[TorchModel, OnnxFile], tmp_path: Path):
        _, trunk = text_trunk
        norms = [node for node in onnx.load(trunk.path).graph.node if node.op_type == "LayerNormalization"]
        features = norms[0].output[0]
        assert features_spec(trunk, features) == TensorSpec(features, "float32", ("batch", "sequence", 16))
        head = masked_head(16)
        made = attach_head(trunk, head, tmp_path / "new.onnx", features=features)
        assert_head_of(made, head, lambda inputs: trunk_outputs(trunk, features, Rows(inputs)))
        assert len(onnx.load(made.path).graph.node) < len(onnx.load(trunk.path).graph.node)

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            (masked_head(16, mask="mask"), "pooled takes 'mask' beside the features, but bert.onnx has the inputs input_ids,"),
            (masked_head(16, dtype="float32"), r"takes attention_mask: float32 .* has attention_mask: int64"),
            (masked_head(8), r"takes tokens: float32 \[n x length x 8\], but bert.onnx has .*\[batch x sequence x 16\]"),
            (linear_head(16), r"takes features: float32 \[n x 16\]"),
        ],
    )
    def test_a_head_that_does_not_fit(self, text_trunk, head: TorchModel, message: str, tmp_path: Path):
        with pytest.raises(ContractError, match=message):
            attach_head(text_trunk[1], head, tmp_path / "new.onnx", features="last_hidden_state")
        assert not list(tmp_path.iterdir())


class TestSurgery:
    @pytest.mark.parametrize(("features", "opset"), [("act", 13), ("logits", 18), ("act", 20), ("logits", 22)])
    def test_names_clash(self, write_model: Callable[..., OnnxFile], features: str, opset: int, tmp_path: Path):
        """Trunk and head both have a weight ``weight`` and a tensor ``logits``, which the head may even read."""
        trunk = write_model("mlp", MLP.format(opset=opset), ARRAYS)
        head = linear_head(6 if features == "act" else 3)
        made = attach_head(trunk, head, tmp_path / "new.onnx", features=features)
        file = read_onnx(made.path)
        assert file.opset == opset
        assert made.route == ("dynamo" if opset >= 18 else "torchscript")
        assert_head_of(made, head, lambda inputs: trunk_outputs(trunk, features, Rows(inputs)))
        names = {tensor.name for tensor in graph_of(made.path).initializer}
        assert names == {"w", "b", "head/weight", "head/bias"} | ({"weight"} if features == "logits" else set())

    def test_twice(self, write_model: Callable[..., OnnxFile], tmp_path: Path):
        trunk = write_model("mlp", MLP.format(opset=20), ARRAYS)
        once = attach_head(trunk, linear_head(6, classes=4), tmp_path / "once.onnx", features="act")
        head = linear_head(4)
        twice = attach_head(read_onnx(once.path), head, tmp_path / "twice.onnx", features="logits")
        assert_head_of(twice, head, lambda inputs: open_session(once.path)(inputs)["logits"])
        graph_of(twice.path)

    def test_a_branch_reads_the_trunk(self, write_model: Callable[..., OnnxFile], tmp_path: Path):
        """A branch of an If captures a weight of the same name as the head's, and holds a tensor called as the head's output."""
        text = """<ir_version: 8, opset_import: ["": 20]>
        branches (float[batch, 4] x) => (float[batch, 3] result)
        { hidden = MatMul(x, weight)
          total = ReduceSum<keepdims = 0>(x)
          zero = Constant<value = float {0.0}>()
          positive = Greater(total, zero)
          act = If(positive) <
            then_branch = yes () => (float[batch, 3] logits) { logits = Add(hidden, bias) },
            else_branch = no () => (float[batch, 3] kept) { kept = Sub(hidden, bias) }
          >
          result = Relu(act) }"""
        trunk = write_model("branches", text, {"weight": ARRAYS["w"][:, :3], "bias": ARRAYS["b"][:3]})
        head = linear_head(3)
        made = attach_head(trunk, head, tmp_path / "new.onnx", features="act")
        assert_head_of(made, head, lambda inputs: trunk_outputs(trunk, "act", Rows(inputs)))
        graph_of(made.path)

    def test_a_head_that_passes_on_what_it_takes(self, write_model: Callable[..., OnnxFile], tmp_path: Path):
        class Both(nn.Linear):
            def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return super().forward(features), features

        trunk = write_model("mlp", MLP.format(opset=20), ARRAYS)
        shape = linear_head(6).contract
        contract = Contract(shape.inputs, (*shape.outputs, TensorSpec("embedding", "float32", ("n", 6))), Kind.LOGITS)
        head = TorchModel(Both(6, 2), contract, "both")
        made = attach_head(trunk, head, tmp_path / "new.onnx", features="act")
        assert made.contract.outputs[1] == TensorSpec("embedding", "float32", ("batch", 6))
        assert_head_of(made, head, lambda inputs: trunk_outputs(trunk, "act", Rows(inputs)))

    def test_fixed_batch_and_float16(self, write_model: Callable[..., OnnxFile], tmp_path: Path):
        text = MLP.format(opset=20).replace("float[batch", "float16[2").replace("float[batch", "float16[2")
        trunk = write_model("half", text, {name: array.astype(np.float16) for name, array in ARRAYS.items()})
        assert features_spec(trunk, "act") == TensorSpec("act", "float16", (2, 6))
        made = attach_head(trunk, linear_head(6), tmp_path / "new.onnx", features="act")
        assert made.contract.outputs == (TensorSpec("logits", "float32", (2, 2)),)
        assert [batch.batch_size for batch in made.proof.batches] == [2]
        outputs = trunk_outputs(trunk, "act", Rows({"x": np.ones((5, 4), np.float16)}))
        assert outputs.shape == (5, 6)
        assert outputs.dtype == np.float32

    def test_functions(self, write_model: Callable[..., OnnxFile], tmp_path: Path):
        text = """<ir_version: 8, opset_import: ["": 20, "own": 1]>
        calls (float[batch, 4] x) => (float[batch, 6] out)
        { act = own.layer(x, w)
          out = Relu(act) }
        <domain: "own", opset_import: ["": 20]>
        layer (x, w) => (y) { h = MatMul(x, w)  y = Tanh(h) }"""
        trunk = write_model("calls", text, {"w": ARRAYS["w"]})
        head = linear_head(6)
        made = attach_head(trunk, head, tmp_path / "new.onnx", features="act")
        assert_head_of(made, head, lambda inputs: np.tanh(inputs["x"] @ ARRAYS["w"]))

    @pytest.mark.parametrize("runs_apart", [False, True])
    def test_external_data(
        self, write_model: Callable[..., OnnxFile], runs_apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        if runs_apart:
            monkeypatch.setattr(apart, "LARGEST_HELD_BYTES", 10)
        trunk = write_model("mlp", MLP.format(opset=20), ARRAYS, external="weights.bin")
        head = linear_head(6)
        made = attach_head(trunk, head, tmp_path / "elsewhere" / "new.onnx", features="act")
        assert [path.name for path in made.path.parent.iterdir()] == ["new.onnx"]
        assert_head_of(made, head, lambda inputs: trunk_outputs(trunk, "act", Rows(inputs)))


class TestUnusableFeatures:
    def test_unknown_name(self, picture_trunk: tuple[TorchModel, OnnxFile, str], tmp_path: Path):
        _, trunk, features = picture_trunk
        message = (
            rf"conv.onnx computes no tensor 'embedding': its outputs are logits, the last of its \d+ inner tensors .*{features}"
        )
        rows = Rows(random_inputs(trunk.contract, 2, np.random.default_rng(0)))
        for ask in (
            lambda: features_spec(trunk, "embedding"),
            lambda: trunk_outputs(trunk, "embedding", rows),
            lambda: attach_head(trunk, linear_head(16), tmp_path / "new.onnx", features="embedding"),
        ):
            with pytest.raises(ContractError, match=message):
                ask()

    @pytest.mark.parametrize(
        ("features", "message"),
        [
            ("best", "'best' in odd.onnx has dtype int64, expected floats"),
            ("turned", r"'turned' in odd.onnx has the shape \[4 x \w+\], expected the rows on its first axis"),
        ],
    )
    def test_no_features(self, write_model: Callable[..., OnnxFile], features: str, message: str):
        text = """<ir_version: 8, opset_import: ["": 20]>
        odd (float[batch, 4] x) => (float[batch, 4] y)
        { best = ArgMax<axis = 1>(x)
          turned = Transpose(x)
          y = Relu(x) }"""
        trunk = write_model("odd", text)
        with pytest.raises(ContractError, match=message):
            features_spec(trunk, features)
        with pytest.raises(ContractError, match=message.replace(r"\w+", r"\d+")):
            trunk_outputs(trunk, features, Rows({"x": np.ones((3, 4), np.float32)}))

    def test_output_called_as_an_input(self, write_model: Callable[..., OnnxFile], tmp_path: Path):
        trunk = write_model("mlp", MLP.format(opset=20), ARRAYS)
        with pytest.raises(ContractError, match=r"calls an output 'x', which is an input of mlp\.onnx"):
            attach_head(trunk, linear_head(6, output="x"), tmp_path / "new.onnx", features="act")
