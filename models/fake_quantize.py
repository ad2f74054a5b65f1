"""A module that computes as its 8-bit version will, in float and with gradients: for training that knows of the quantisation.

Weights of convolutions and linear layers get 8 bits by output channel, symmetric; their inputs, and the tables of embeddings, 8
bits by tensor: what the lowering ``int8-static`` writes. Gradients pass rounding as if it were not there, and stop where a value
is cut off (straight-through, Jacob et al. 2018, arXiv 1712.05877). BatchNorm needs no folding beforehand: it scales whole output
channels, each of which has a scale of its own, so the folded weight is rounded to the same steps.

Not followed: the rounding of a convolution's output that goes to no other such layer, and of biases, which get 32 bits.

torch.ao.quantization is deprecated, and its successor torchao quantises for its own kernels, not for ONNX graphs.

Shape letters: ``b`` batch, ``k`` output channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
LARGEST_WEIGHT = 127
_LARGEST_ACTIVATION = 255


class FakeQuantized(nn.Module):
    """``module`` as its 8-bit version will compute it. Its parameters are those of ``module``, under the names that they have.

    :meth:`calibrate` it before it is run, and again when the weights have changed.
    """

    def __init__(self, module: nn.Module, calibration: Sequence[Sequence[Tensor]], largest_weight: int = LARGEST_WEIGHT) -> None:
        """Watch the inputs of the layers of ``module`` until :meth:`release`.

        Args:
            module: what is trained, in place.
            calibration: batches of inputs, on which the ranges of activations are found.
            largest_weight: steps from zero to the largest weight of a channel: 127, or 64 for weights of 7 bits.
        """
        super().__init__()
        self.module = module
        self._calibration, self._largest_weight = calibration, largest_weight
        layers = [each for each in module.modules() if isinstance(each, _LAYERS)]
        self.ranges = nn.ModuleList(InputRange() for _ in layers)
        self._hooks = [layer.register_forward_pre_hook(each) for layer, each in zip(layers, self.ranges, strict=True)]
        self.train(module.training)

    def forward(self, *inputs: Any) -> Any:
        """Return what ``module`` gives with quantised weights, for quantised inputs of its layers."""
        return functional_call(self.module, dict(self._quantised_weights()), inputs)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Find the ranges of activations anew: the least and the largest in float, as calibration by min-max will."""
        was_training, device = self.training, next(self.module.parameters()).device
        self._observe(True)
        self.module.eval()
        for inputs in self._calibration:
            self.module(*(each.to(device) for each in inputs))
        self._observe(False)
        self.train(was_training)

    def release(self) -> nn.Module:
        """Stop watching, and return the module: in float again, with what it has learned."""
        for hook in self._hooks:
            hook.remove()
        return self.module

    def _observe(self, is_observing: bool) -> None:
        for each in self.ranges:
            assert isinstance(each, InputRange)
            if is_observing:
                each.low.zero_()  # zero is always in the range: it has to be exact
                each.high.zero_()
            each.is_observing = is_observing

    def _quantised_weights(self) -> Iterable[tuple[str, Tensor]]:
        parameters = dict(self.module.named_parameters())
        for name, layer in self.module.named_modules():
            key = f"{name}.weight" if name else "weight"
            if key in parameters and isinstance(layer, _LAYERS):
                yield key, quantise_by_channel(parameters[key], self._largest_weight)
            elif key in parameters and isinstance(layer, nn.Embedding):
                low, high = (bound.detach() for bound in parameters[key].aminmax())
                yield key, quantise_by_tensor(parameters[key], low.clamp(max=0), high.clamp(min=0))


class InputRange(nn.Module):
    """A hook on one layer: it quantises what goes into it or, while it observes, notes between what bounds that lies."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.is_observing = False

    def forward(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the inputs of ``layer``, the first one quantised."""
        if not inputs:  # given by keyword
            return None
        if self.is_observing:
            low, high = inputs[0].detach().float().aminmax()
            torch.minimum(self.low, low, out=self.low)
            torch.maximum(self.high, high, out=self.high)
            return None
        return (quantise_by_tensor(inputs[0].float(), self.low, self.high), *inputs[1:])


def quantise_by_channel(weight: Tensor, largest_weight: int = LARGEST_WEIGHT) -> Tensor:
    """Round ``weight`` ``[k x …]`` to steps symmetric about zero, as wide as each output channel needs."""
    largest = weight.detach().abs().flatten(1).amax(1)  # [k]
    scale = (largest / largest_weight).clamp(min=torch.finfo(weight.dtype).tiny)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -largest_weight, largest_weight)


def quantise_by_tensor(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round ``values`` to 256 steps from ``low``, at most zero, to ``high``, at least zero, and cut off what lies beyond.

    Without a range between the two nothing is done.
    """
    scale = (high - low) / _LARGEST_ACTIVATION
    if scale < torch.finfo(scale.dtype).tiny:
        return values
    zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, _LARGEST_ACTIVATION)
