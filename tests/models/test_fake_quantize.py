"""A module that computes as its 8-bit version: its steps, its gradients, and that it gives the module back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from monograph.models.fake_quantize import FakeQuantized, quantise_by_channel, quantise_by_tensor
from monograph.models.students import conv, mlp, transformer


def pictures(count: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    made = conv((1, 8, 8), width=4, dropout=0.0)[0]
    made(pictures())  # BatchNorm sees some rows
    return made.eval()


def test_a_weight_lies_on_255_steps_of_its_channel():
    weight = torch.tensor([[-1.27, 0.004, 0.006], [0.0, 0.0, 0.0], [25.4, 12.75, -0.05]])
    expected = [[-1.27, 0.0, 0.01], [0.0, 0.0, 0.0], [25.4, 12.8, 0.0]]
    torch.testing.assert_close(quantise_by_channel(weight), torch.tensor(expected))


@given(st.lists(st.floats(0.01, 100).flatmap(lambda size: st.sampled_from([size, -size])), min_size=6, max_size=6))
def test_a_norm_that_scales_channels_leaves_the_steps_where_they_are(factors: list[float]):
    """So it does not matter whether BatchNorm is folded into the weight before it is rounded."""
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(factors).reshape(6, 1, 1, 1)
    torch.testing.assert_close(quantise_by_channel(weight * scale) / scale, quantise_by_channel(weight), atol=1e-6, rtol=1e-4)


@given(st.floats(-50, 0), st.floats(0, 50))
def test_an_activation_is_at_most_half_a_step_away_and_zero_is_exact(low: float, high: float):
    values = torch.linspace(low, high, 101)
    step = (high - low) / 255
    rounded = quantise_by_tensor(values, torch.tensor(low), torch.tensor(high))
    assert float((rounded - values).abs().max()) <= 0.51 * step + 1e-6
    assert float(quantise_by_tensor(torch.zeros(()), torch.tensor(low), torch.tensor(high))) == 0


def test_gradients_pass_rounding_and_stop_where_a_value_is_cut_off():
    values = torch.tensor([-3.0, -0.3, 0.2, 0.9, 5.0], requires_grad=True)
    quantise_by_tensor(values, torch.tensor(-1.0), torch.tensor(1.0)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.randn(4, 9, requires_grad=True)
    quantise_by_channel(weight).sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())


def test_every_weight_gets_a_gradient(module: nn.Module):
    fake = FakeQuantized(module, [[pictures()]])
    fake.calibrate()
    fake(pictures()).logsumexp(1).sum().backward()
    assert {name for name, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()} <= {
        "0.bias"
    }


def test_ranges_are_those_of_the_calibration_in_float(module: nn.Module):
    seen: list[Tensor] = []
    hook = module[4].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))  # type: ignore[index] # a Sequential
    module(pictures())
    hook.remove()
    fake = FakeQuantized(module, [[part] for part in pictures().split(5)])
    fake.calibrate()
    assert len(fake.ranges) == 4
    torch.testing.assert_close(fake.ranges[0].low, pictures().min())
    torch.testing.assert_close(fake.ranges[0].high, pictures().max())
    torch.testing.assert_close(fake.ranges[1].high, seen[0].max())
    assert fake.ranges[1].low == 0
    with torch.no_grad():
        module[1].weight.mul_(3)  # type: ignore[index]
    fake.calibrate()
    assert fake.ranges[1].high > 2 * seen[0].max()


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: conv((1, 8, 8), width=4)[0], [pictures()]),
        (lambda: mlp((1, 8, 8), width=8)[0], [pictures()]),
        (
            lambda: transformer(50, 24, 3, width=16, depth=1, heads=2)[0],
            [torch.arange(24).reshape(2, 12), torch.ones(2, 12, dtype=torch.int64)],
        ),
    ],
    ids=["conv", "mlp", "transformer"],
)
def test_the_module_comes_back_under_its_own_names(make: Callable[[], nn.Module], inputs: list[Tensor]):
    torch.manual_seed(0)
    module = make().eval()
    names, before = list(module.state_dict()), module(*inputs).detach()
    fake = FakeQuantized(module, [inputs])
    fake.calibrate()
    assert 0 < float((fake(*inputs).detach() - before).abs().max()) < 0.2 * float(before.abs().max())
    optimizer = torch.optim.SGD(fake.parameters(), 1e-2)
    fake(*inputs).square().sum().backward()
    optimizer.step()
    kept = {name: tensor.clone() for name, tensor in fake.state_dict().items() if name.startswith("module.")}
    released = fake.release()
    assert released is module
    assert list(module.state_dict()) == names == [name.removeprefix("module.") for name in kept]
    fresh = make().eval()
    fresh.load_state_dict({name.removeprefix("module."): tensor for name, tensor in kept.items()})
    np.testing.assert_array_equal(module(*inputs).detach().numpy(), fresh(*inputs).detach().numpy())


def test_a_copy_has_ranges_of_its_own(module: nn.Module):
    """An average of weights is kept in a copy."""
    fake = FakeQuantized(module, [[pictures()]])
    fake.calibrate()
    twin = copy.deepcopy(fake)
    with torch.no_grad():
        fake.ranges[0].high.fill_(0.1)  # type: ignore[operator] # a buffer
    torch.testing.assert_close(twin.ranges[0].high, pictures().max())
    assert not torch.equal(fake(pictures()), twin(pictures()))
    twin.release()
    assert torch.equal(twin.module(pictures()), copy.deepcopy(fake).release()(pictures()))
