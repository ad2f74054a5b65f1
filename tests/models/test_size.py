from pathlib import Path

import pytest
import torch
from torch import nn

from monograph.errors import ContractError
from monograph.export.fusion import macs as onnx_macs
from monograph.export.trace import export_torch
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.size import count_macs, count_parameters
from monograph.models.students import ALL_STUDENTS, STUDENTS, conv, mlp, transformer, two_tower
from monograph.models.torch_model import TorchModel

SEQUENCE = Contract(
    (TensorSpec("x", "float32", ("batch", "sequence", 8)),),
    (TensorSpec("y", "float32", ("batch", "sequence", 8)),),
    Kind.REGRESSION,
)


class FusedAttention(nn.Module):
    """Attention by the operator that PyTorch computes with one fused kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x[:, None]
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0]


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = layer(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def macs(made: tuple[nn.Module, Contract], sequence_length: int = 64) -> int:
    return count_macs(TorchModel(*made, "m"), sequence_length)


class TestByHand:
    def test_mlp(self):
        made = mlp((1, 4, 4), 3, width=5)
        assert macs(made) == 16 * 5 + 5 * 5 + 5 * 3
        assert count_parameters(made[0]) == (16 * 5 + 5) + (5 * 5 + 5) + (5 * 3 + 3)

    def test_conv(self):
        made = conv((2, 8, 8), 3, width=4)  # the picture is 8, 4 and 2 pixels wide
        assert macs(made) == 64 * 9 * 2 * 4 + 16 * 9 * 4 * 8 + 4 * 9 * 8 * 16 + 16 * 3
        assert count_parameters(made[0]) == 9 * (2 * 4 + 4 * 8 + 8 * 16) + 2 * (4 + 8 + 16) + 16 * 3 + 3

    @pytest.mark.parametrize(("sequence_length", "counted"), [(10, 10), (64, 32)])
    def test_transformer(self, sequence_length: int, counted: int):
        """Texts longer than the longest that the model takes are not counted."""
        layer = counted * (4 * 16 * 16 + 2 * 16 * 64) + 2 * counted * counted * 16
        assert macs(transformer(50, 32, 3, width=16, depth=2, heads=4), sequence_length) == 2 * layer + 16 * 3

    def test_two_tower(self):
        assert macs(two_tower(9, 7, width=4)) == 4
        assert macs(two_tower(9, 7, width=4, right_kind="features")) == 7 * 4 + 4 * 4 + 4

    def test_fused_attention(self):
        assert macs((FusedAttention(), SEQUENCE), 10) == 2 * 10 * 10 * 8

    def test_the_fast_path_of_an_encoder_layer(self):
        layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
        assert macs((layer, SEQUENCE), 10) == 10 * (4 * 8 * 8 + 2 * 8 * 32) + 2 * 10 * 10 * 8

    @pytest.mark.parametrize(("layer", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
    def test_recurrent_layers(self, layer: type[nn.RNNBase], gates: int):
        assert macs((Recurrent(layer), SEQUENCE), 10) == 10 * gates * 16 * (8 + 16)

    def test_a_row_of_a_fixed_batch(self):
        contract = Contract((TensorSpec("x", "float32", (6, 8)),), (TensorSpec("y", "float32", (6, 2)),), Kind.REGRESSION)
        assert macs((nn.Linear(8, 2), contract)) == 8 * 2


@pytest.mark.parametrize("name", ALL_STUDENTS)
def test_the_exported_graph_costs_the_same(name: str, tmp_path: Path):
    made = ALL_STUDENTS[name](width=8)
    export_torch(TorchModel(*made, name), tmp_path / "m.onnx", batch_sizes=(1, 2))
    counted = macs(made)
    assert counted == onnx_macs.count_macs(tmp_path / "m.onnx")
    assert counted > 0


@pytest.mark.parametrize("name", ALL_STUDENTS)
def test_counting_needs_no_weights(name: str):
    with torch.device("meta"):
        made = ALL_STUDENTS[name](width=8)
    assert macs(made) == macs(ALL_STUDENTS[name](width=8))


def test_counting_leaves_the_module_as_it_was():
    module, contract = STUDENTS["conv"]((1, 8, 8), 3, width=4)
    module.train()
    module[1].eval()  # a frozen BatchNorm
    before = {name: value.clone() for name, value in module.state_dict().items()}
    macs((module, contract))
    assert [part.training for part in module] == [index != 1 for index in range(len(module))]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


def test_shared_parameters_count_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert count_parameters(module) == 9 + 3 + 3


def test_a_contract_that_the_module_cannot_take():
    with pytest.raises(ContractError, match=r"^m does not run on inputs that its contract allows: mat1 and mat2 [^\n]*$"):
        macs((nn.Linear(7, 2), SEQUENCE))
