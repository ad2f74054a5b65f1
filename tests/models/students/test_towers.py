from pathlib import Path

import numpy as np
import pytest
import torch

from monograph.errors import ConfigError
from monograph.export.trace import export_torch
from monograph.models.contract import Kind, random_inputs
from monograph.models.students import two_tower
from monograph.models.torch_model import TorchModel

KINDS = [("ids", "ids"), ("ids", "features"), ("features", "features")]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(("left_kind", "right_kind"), KINDS)
def test_export(left_kind: str, right_kind: str, dynamo: bool, tmp_path: Path):
    torch.manual_seed(0)
    made = two_tower(9, 5, width=4, left_kind=left_kind, right_kind=right_kind)
    exported = export_torch(TorchModel(*made, "towers"), tmp_path / "m.onnx", dynamo=dynamo)
    assert [batch.batch_size for batch in exported.proof.batches] == [1, 2, 5]
    assert exported.contract.kind is Kind.SCORES


def test_contract():
    _, contract = two_tower(9, 5, width=4, right_kind="features")
    left, right = contract.inputs
    assert (left.name, left.dtype, left.shape, left.upper_bound) == ("left", "int64", ("batch",), 9)
    assert (right.name, right.dtype, right.shape, right.upper_bound) == ("right", "float32", ("batch", 5), None)
    assert contract.output.describe() == "scores: float32 [batch x 1]"


@pytest.mark.parametrize(("left_kind", "right_kind"), KINDS)
def test_a_score_is_the_scaled_dot_product_of_the_towers(left_kind: str, right_kind: str):
    torch.manual_seed(0)
    module, contract = two_tower(9, 5, width=16, left_kind=left_kind, right_kind=right_kind)
    inputs = random_inputs(contract, 6, np.random.default_rng(0))
    scores = TorchModel(module, contract, "towers")(inputs)["scores"]
    with torch.inference_mode():
        left, right = (module.get_submodule(name)(torch.from_numpy(inputs[name])).numpy() for name in ("left", "right"))
    np.testing.assert_allclose(scores[:, 0], (left * right).sum(1) / 4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"left_kind": "words"}, "left_kind is 'words', expected 'ids' or 'features'"),
        ({"right_size": 0}, "right_size is 0, expected a positive number"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, object], message: str):
    with pytest.raises(ConfigError) as caught:
        two_tower(**arguments)
    assert str(caught.value) == message
