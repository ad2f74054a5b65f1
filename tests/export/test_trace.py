import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from monograph.errors import ConfigError, ContractError, ExportError, ParityError
from monograph.export.trace import PROOF_KEY, export_torch, write_proven
from monograph.models.contract import TOKENIZER_KEY, Contract, ImagePreprocessing, Kind, TensorSpec, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.models.students import STUDENTS
from monograph.models.torch_model import TorchModel
from monograph.runtime.session import open_session

X = TensorSpec("x", "float32", ("batch", 4))
LOGITS = TensorSpec("logits", "float32", ("batch", 3))
CONTRACT = Contract((X,), (LOGITS,), Kind.LOGITS)
ROUTES = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Noisy(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.rand(3)


class Counting(Linear):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


class BakedBatch(Linear):
    """The batch size becomes a Python number, which tracing keeps as it was."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.zeros(len(x.tolist()), 3)


class DataDependent(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class TrainingMatters(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(self.layer(x), 7.0) if self.training else self.layer(x)


class Raising(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no way\nwith details")


class Difference(Linear):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.layer(left - right)


class StarDifference(Linear):
    def forward(self, *sides: torch.Tensor) -> torch.Tensor:
        return self.layer(sides[0] - sides[1])


class WithHidden(Linear):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(x)
        return self.layer(hidden), hidden


class WithHiddenByName(WithHidden):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        logits, hidden = super().forward(x)
        return {"logits": logits, "hidden": hidden}


class Pooled(nn.Module):
    """The mean of the tokens' rows, padding left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.unsqueeze(-1).float()  # [b, s, 1]
        return (self.table(ids) * weights).sum(1) / weights.sum(1)


def torch_model(module: nn.Module, contract: Contract = CONTRACT) -> TorchModel:
    return TorchModel(module, contract, type(module).__name__.lower())


def assert_equal_at(model: TorchModel, path: Path, batch_size: int, **options: int) -> None:
    inputs = random_inputs(model.contract, batch_size, np.random.default_rng(99), **options)
    expected, got = model(inputs), open_session(path)(inputs)
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, atol=1e-5)


def everything_in(folder: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, emptied; torch's own caches stay where they were."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


class TestStudents:
    @ROUTES
    @pytest.mark.parametrize("name", STUDENTS)
    def test_export(self, name: str, dynamo: bool, tmp_path: Path):
        torch.manual_seed(0)
        module, contract = STUDENTS[name]((1, 12, 12), 5, width=4)
        contract = contract.with_class_names(("ant", "bee", "cat", "dog", "élan"))
        model = TorchModel(module, contract, name)
        path = tmp_path / "new folder" / "student.onnx"
        exported = export_torch(model, path, dynamo=dynamo)

        file = read_onnx(path)
        assert file.contract == contract == exported.contract
        assert file.contract.class_names == ("ant", "bee", "cat", "dog", "élan")
        assert file.contract.inputs[0].preprocessing == ImagePreprocessing(mean=(0.5,), std=(0.5,))
        assert file.contract.batch_is_dynamic
        assert file.opset == 20
        assert exported.route == ("dynamo" if dynamo else "torchscript")
        assert [batch.batch_size for batch in exported.proof.batches] == [1, 2, 5]
        assert json.loads(file.metadata[PROOF_KEY])["candidate"] == "student.onnx"
        assert everything_in(path.parent) == ["student.onnx"]
        for batch_size in (7, 1, 32):
            assert_equal_at(model, path, batch_size)

    @ROUTES
    def test_trained_statistics_not_the_batchs(self, dynamo: bool, tmp_path: Path):
        """A student in training mode is exported in eval mode: BatchNorm uses what it has learnt, Dropout does nothing."""
        torch.manual_seed(0)
        module, contract = STUDENTS["conv"]((1, 8, 8), 3, width=4, dropout=0.9)
        module.train()
        module(torch.randn(64, 1, 8, 8) * 3 + 1)
        path = tmp_path / "m.onnx"
        export_torch(TorchModel(module, contract, "conv"), path, dynamo=dynamo)
        assert_equal_at(TorchModel(module, contract, "conv"), path, 7)


class TestSignatures:
    @ROUTES
    @pytest.mark.parametrize("module", [Difference, StarDifference])
    def test_two_inputs_in_order(self, module: type[nn.Module], dynamo: bool, tmp_path: Path):
        sides = tuple(TensorSpec(name, "float32", ("n", 4)) for name in ("one", "two"))
        contract = Contract(sides, (LOGITS,), Kind.LOGITS)
        model, path = torch_model(module(), contract), tmp_path / "m.onnx"
        export_torch(model, path, dynamo=dynamo)
        assert [spec.name for spec in read_onnx(path).contract.inputs] == ["one", "two"]
        assert_equal_at(model, path, 7)

    @ROUTES
    def test_ids_and_mask_with_a_dynamic_sequence(self, dynamo: bool, tmp_path: Path):
        ids = TensorSpec("input_ids", "int64", ("batch", "sequence"), upper_bound=7)
        contract = Contract((ids, TensorSpec("attention_mask", "int64", ("batch", "sequence"))), (LOGITS,), Kind.LOGITS)
        model, path = torch_model(Pooled(), contract), tmp_path / "m.onnx"
        export_torch(model, path, dynamo=dynamo)
        assert_equal_at(model, path, 7, sequence_length=31)
        assert_equal_at(model, path, 1, sequence_length=1)

    @ROUTES
    @pytest.mark.parametrize("module", [WithHidden, WithHiddenByName])
    def test_two_outputs(self, module: type[nn.Module], dynamo: bool, tmp_path: Path):
        contract = Contract((X,), (LOGITS, TensorSpec("hidden", "float32", ("batch", 4))), Kind.LOGITS)
        model, path = torch_model(module(), contract), tmp_path / "m.onnx"
        proof = export_torch(model, path, dynamo=dynamo).proof
        assert {batch.output for batch in proof.batches} == {"logits", "hidden"}
        assert_equal_at(model, path, 7)

    @ROUTES
    def test_fixed_batch(self, dynamo: bool, tmp_path: Path):
        contract = Contract((TensorSpec("x", "float32", (3, 4)),), (TensorSpec("logits", "float32", (3, 3)),), Kind.LOGITS)
        exported = export_torch(torch_model(Linear(), contract), tmp_path / "m.onnx", dynamo=dynamo)
        assert [batch.batch_size for batch in exported.proof.batches] == [3]
        (value,) = onnx.load(exported.path).graph.input
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [3, 4]

    def test_tokenizer_travels_along(self, tmp_path: Path):
        model = TorchModel(Linear(), CONTRACT, "m", tokenizer_json='{"model": {}}')
        export_torch(model, tmp_path / "m.onnx", dynamo=False)
        assert read_onnx(tmp_path / "m.onnx").metadata[TOKENIZER_KEY] == '{"model": {}}'

    @ROUTES
    def test_real_rows(self, dynamo: bool, tmp_path: Path):
        rows = Rows({"x": np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)})
        proof = export_torch(torch_model(Linear()), tmp_path / "m.onnx", dynamo=dynamo, rows=rows).proof
        assert {batch.rows for batch in proof.batches} == {"real"}

    @ROUTES
    def test_module_is_exported_as_it_is_in_eval_mode(self, dynamo: bool, tmp_path: Path):
        module = TrainingMatters().train()
        export_torch(torch_model(module), tmp_path / "m.onnx", dynamo=dynamo)
        got = open_session(tmp_path / "m.onnx")({"x": np.zeros((2, 4), np.float32)})["logits"]
        np.testing.assert_allclose(got, np.tile(module.layer.bias.detach().numpy(), (2, 1)), atol=1e-6)


class TestOpset:
    @pytest.mark.parametrize(("dynamo", "opset"), [(True, 18), (True, 21), (False, 13), (False, 17)])
    def test_the_one_asked_for(self, dynamo: bool, opset: int, tmp_path: Path):
        model, path = torch_model(Linear()), tmp_path / "m.onnx"
        export_torch(model, path, dynamo=dynamo, opset=opset)
        assert read_onnx(path).opset == opset
        assert_equal_at(model, path, 7)

    @pytest.mark.parametrize(
        ("dynamo", "opset", "message"),
        [
            (True, 11, "PyTorch's dynamo exporter writes opset 18 where 11 was asked for: pass --opset 18"),
            (False, 21, "PyTorch's torchscript exporter writes opset 20 where 21 was asked for: pass --opset 20"),
        ],
    )
    def test_one_that_cannot_be_had_is_refused(self, dynamo: bool, opset: int, message: str, tmp_path: Path):
        with pytest.raises(ConfigError, match=message) as info:
            export_torch(torch_model(Linear()), tmp_path / "m.onnx", dynamo=dynamo, opset=opset)
        assert info.value.exit_code == 2
        assert everything_in(tmp_path) == []


class TestRefusals:
    """A refusal is one line, nothing is written, nothing is printed, and a file that was there stays."""

    @pytest.fixture
    def refused(self, tmp_path: Path, scratch: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def refuse(error: type[Exception], module: nn.Module, contract: Contract = CONTRACT, **options: int) -> str:
            path = tmp_path / "m.onnx"
            path.write_bytes(b"the old file")
            with pytest.raises(error) as info:
                export_torch(torch_model(module, contract), path, **options)
            assert path.read_bytes() == b"the old file"
            assert everything_in(tmp_path) == ["m.onnx"]
            assert [name for name in everything_in(scratch) if "monograph" in name] == []
            printed = capfd.readouterr()
            assert printed.err == ""
            # PyTorch's C++ writes this one past Python's stdout.
            assert printed.out == "" or printed.out.startswith("Torch IR graph at exception")
            message = str(info.value)
            assert "\n" not in message
            assert "\x1b" not in message
            return message

        return refuse

    @ROUTES
    def test_noise(self, refused: Callable[..., str], dynamo: bool):
        message = refused(ParityError, Noisy(), dynamo=dynamo)
        assert message.startswith(
            "m.onnx does not compute the same as noisy in PyTorch: output 'logits' at batch 1 on random rows"
        )

    @ROUTES
    def test_python_state(self, refused: Callable[..., str], dynamo: bool):
        assert "does not compute the same as counting in PyTorch" in refused(ParityError, Counting(), dynamo=dynamo)

    @ROUTES
    def test_batch_size_baked_in(self, refused: Callable[..., str], dynamo: bool):
        message = refused(ParityError, BakedBatch(), dynamo=dynamo)
        assert "at batch 1" in message
        assert message.endswith("nothing was written")

    def test_data_dependent_branch_by_dynamo(self, refused: Callable[..., str]):
        message = refused(ExportError, DataDependent())
        assert message.startswith("datadependent cannot be exported by dynamo: Could not guard on data-dependent expression")
        assert message.endswith("try --no-dynamo, PyTorch's older exporter")
        assert ExportError.exit_code == 1

    def test_data_dependent_branch_by_torchscript(self, refused: Callable[..., str]):
        """The older exporter keeps the branch that the traced rows took, and says nothing: only the proof tells."""
        assert "does not compute the same as datadependent in PyTorch" in refused(ParityError, DataDependent(), dynamo=False)

    def test_operator_that_torchscript_does_not_know(self, refused: Callable[..., str]):
        class Special(Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.special.bessel_j0(self.layer(x))

        message = refused(ExportError, Special(), dynamo=False)
        assert message.startswith("special cannot be exported by TorchScript: ")
        assert message.endswith("try --dynamo, the default")

    @ROUTES
    def test_module_that_raises(self, refused: Callable[..., str], dynamo: bool):
        message = refused(ContractError, Raising(), dynamo=dynamo)
        assert message == "raising does not run in PyTorch on x: float32 [2, 4], which its contract allows: no way"

    @ROUTES
    @pytest.mark.parametrize(
        ("module", "contract", "reason"),
        [
            (Linear, Contract((TensorSpec("x", "float32", ("batch", 5)),), (LOGITS,), Kind.LOGITS), "cannot be multiplied"),
            (Difference, CONTRACT, "missing 1 required positional argument: 'right'"),
            (Linear, Contract((X, TensorSpec("y", "float32", (1,))), (LOGITS,), Kind.LOGITS), "takes 2 positional arguments"),
        ],
    )
    def test_inputs_of_another_module(
        self, refused: Callable[..., str], module: type[nn.Module], contract: Contract, reason: str, dynamo: bool
    ):
        message = refused(ContractError, module(), contract, dynamo=dynamo)
        assert message.startswith(f"{module.__name__.lower()} does not run in PyTorch on x: float32 [2, ")
        assert reason in message

    @ROUTES
    @pytest.mark.parametrize(
        ("module", "outputs", "message"),
        [
            (WithHidden, (LOGITS,), "withhidden returns 2 tensors but its contract names 1 outputs (logits): "),
            (
                Linear,
                (LOGITS, TensorSpec("z", "float32", ("batch",))),
                "linear returns 1 tensors but its contract names 2 outputs",
            ),
        ],
    )
    def test_outputs_of_another_module(
        self,
        refused: Callable[..., str],
        module: type[nn.Module],
        outputs: tuple[TensorSpec, ...],
        message: str,
        dynamo: bool,
    ):
        assert refused(ContractError, module(), Contract((X,), outputs, Kind.LOGITS), dynamo=dynamo).startswith(message)

    def test_output_called_like_an_input(self, refused: Callable[..., str]):
        contract = Contract((X,), (TensorSpec("x", "float32", ("batch", 3)),), Kind.LOGITS)
        message = refused(ExportError, Linear(), contract)
        assert message.startswith("m.onnx would not be a valid ONNX model: ")
        assert message.endswith("nothing was written")

    def test_no_operator_to_convert(self, refused: Callable[..., str]):
        contract = Contract((X,), (TensorSpec("y", "float32", ("batch", 4)),), Kind.EMBEDDING)
        message = refused(ExportError, nn.Identity(), contract, opset=11)
        assert message.startswith("identity cannot be exported by dynamo: Target opset version 11 is not supported")

    def test_module_compiled_by_torch_jit(self, refused: Callable[..., str]):
        with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
            traced = torch.jit.trace(Linear(), torch.zeros(2, 4))
        assert "ScriptModule is not supported" in refused(ExportError, traced)


@pytest.mark.slow
def test_nothing_is_logged_or_printed(tmp_path: Path):
    """In a process of its own: PyTorch's log handlers write to the stream that stderr was when it was imported."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        "from monograph.errors import MonographError\n"
        "from monograph.export.trace import export_torch\n"
        "from monograph.models.contract import Contract, Kind, TensorSpec\n"
        "from monograph.models.torch_model import TorchModel\n"
        "class Module(nn.Module):\n"
        "    def forward(self, x): return x if x.sum() > 0 else -x\n"
        "inputs, outputs = ((TensorSpec(name, 'float32', ('batch', 4)),) for name in 'xy')\n"
        "try:\n"
        "    export_torch(TorchModel(Module(), Contract(inputs, outputs, Kind.EMBEDDING), 'm'), Path('m.onnx'))\n"
        "except MonographError as error:\n"
        "    print(type(error).__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("ExportError\n", "")


def test_noise_in_one_output_only(tmp_path: Path):
    class Half(Linear):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layer(x), torch.rand_like(x)

    contract = Contract((X,), (LOGITS, TensorSpec("noise", "float32", ("batch", 4))), Kind.LOGITS)
    with pytest.raises(ParityError, match="output 'noise' at batch 1"):
        export_torch(torch_model(Half(), contract), tmp_path / "m.onnx", dynamo=False)


def test_tolerance_reaches_the_proof(tmp_path: Path):
    model = torch_model(Linear())
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[batch, 4] x) => (float[batch, 3] logits)'
        "{ logits = Gemm<transB = 1>(x, w, b) }"
    )
    weight, bias = (value.detach().numpy() for value in model.module.parameters())
    for name, array in (("w", weight * 1.001), ("b", bias * 1.001)):
        graph.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    names = ("a", "b")
    with pytest.raises(ParityError):
        write_proven(ir.from_proto(graph), tmp_path / "m.onnx", CONTRACT, model, names=names)
    proof = write_proven(ir.from_proto(graph), tmp_path / "m.onnx", CONTRACT, model, names=names, tolerance=0.01)
    assert proof.worst.relative_error == pytest.approx(1e-3, rel=0.05)
    assert everything_in(tmp_path) == ["m.onnx"]
