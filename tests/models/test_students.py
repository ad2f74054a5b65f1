import math

import numpy as np
import pytest
import torch
from torch import nn

from monograph.errors import ConfigError
from monograph.models.contract import ImagePreprocessing, Kind, random_inputs
from monograph.models.sources import load_python_model, parse_source
from monograph.models.students import ALL_STUDENTS, STUDENTS, mlp
from monograph.models.torch_model import TorchModel

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 17, 23), (1, 8, 8)]


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("input_shape", SHAPES)
def test_a_student_learns_from_one_step(name: str, input_shape: tuple[int, int, int]):
    torch.manual_seed(0)
    module, contract = STUDENTS[name](input_shape, 5, dropout=0.0)
    pixels = torch.from_numpy(random_inputs(contract, 10, np.random.default_rng(0))["pixels"])
    labels = torch.arange(10) % 5
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module.train()

    loss = nn.functional.cross_entropy(module(pixels), labels)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
    optimizer.step()
    assert nn.functional.cross_entropy(module(pixels), labels).item() < loss.item()


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("input_shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_students_contract_is_what_its_module_gives(name: str, input_shape: tuple[int, int, int], batch_size: int):
    module, contract = STUDENTS[name](input_shape, 4)
    assert contract.inputs[0].shape == ("batch", *input_shape)
    assert (contract.kind, contract.class_count) == (Kind.LOGITS, 4)
    outputs = TorchModel(module, contract, name)(random_inputs(contract, batch_size, np.random.default_rng(0)))
    assert {key: (str(value.dtype), value.shape) for key, value in outputs.items()} == {"logits": ("float32", (batch_size, 4))}
    assert np.isfinite(outputs["logits"]).all()


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_pixels_run_from_minus_one_to_one_in_every_channel(name: str):
    _, contract = STUDENTS[name]((3, 8, 8), 2)
    preprocessing = contract.inputs[0].preprocessing
    assert isinstance(preprocessing, ImagePreprocessing)
    for value, expected in ((0, -1), (255, 1)):
        scaled = (value * preprocessing.scale - np.array(preprocessing.mean)) / np.array(preprocessing.std)
        np.testing.assert_allclose(scaled, [expected] * 3)


@pytest.mark.parametrize("name", STUDENTS)
def test_width_makes_a_student_larger(name: str):
    def size(**options: int) -> int:
        return sum(parameter.numel() for parameter in STUDENTS[name]((1, 28, 28), 10, **options)[0].parameters())

    assert size(width=8) < size() < size(width=512)


@pytest.mark.parametrize("name", STUDENTS)
def test_dropout_is_what_was_asked_for(name: str):
    module, _ = STUDENTS[name]((1, 8, 8), 2, dropout=0.35)
    assert {layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)} == {0.35}


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("input_shape", [(28, 28), (1, 1, 28, 28), ()])
def test_an_input_that_is_no_picture_is_refused(name: str, input_shape: tuple[int, ...]):
    with pytest.raises(ConfigError, match=r"input_shape is \[.*\], expected \[channels, height, width\]"):
        STUDENTS[name](input_shape, 10)


@pytest.mark.parametrize("name", ALL_STUDENTS)
def test_a_student_is_a_model_source(name: str):
    model = load_python_model(parse_source(f"py:monograph.models.students:{name}"), arguments={"width": 8})
    assert model.name == name
    outputs = model(random_inputs(model.contract, 3, np.random.default_rng(0)))
    assert outputs[model.contract.output.name].shape == (3, *model.contract.output.shape[1:])


def test_flat_features():
    module, contract = mlp((30,), 4, width=8)
    assert contract.inputs[0].describe() == "features: float32 [batch x 30]"
    outputs = TorchModel(module, contract, "mlp")(random_inputs(contract, 3, np.random.default_rng(0)))
    assert outputs["logits"].shape == (3, 4)
