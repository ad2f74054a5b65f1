"""How large a PyTorch model is: its parameters, and the multiply-accumulates that one row costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from monograph.errors import ContractError
from monograph.models.contract import Contract, TextPreprocessing, random_inputs
from monograph.models.torch_model import TorchModel

SEQUENCE_LENGTH = 64
"""What symbolic dimensions other than the batch are counted at."""


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers training can set; what two layers share counts once, and buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(model: TorchModel, sequence_length: int = SEQUENCE_LENGTH) -> int:
    """Return the multiply-accumulates of one row in convolutions, matrix products, attention and recurrent layers.

    The row is a random one that the contract allows, computed in eval mode; symbolic dimensions other than the batch are
    ``sequence_length``, or the longest text where that is shorter. They are PyTorch's count of floating point operations
    over two (``torch.utils.flop_counter``): a multiplication and an addition each. What is done element by element, as in
    a norm or an activation, does not count.

    Works on the ``meta`` device too, where nothing is computed.

    Raises:
        ContractError: the module does not run on inputs that its contract allows.
    """
    rows = random_inputs(model.contract, 1, np.random.default_rng(0), usual_length(model.contract, sequence_length))
    device = next((parameter.device for parameter in model.module.parameters()), torch.device("cpu"))
    tensors = [torch.from_numpy(rows[spec.name]).to(device) for spec in model.contract.inputs]
    counter = FlopCounterMode(display=False)
    try:
        with _in_eval_mode(model.module), torch.no_grad(), _counted_kernels(), counter:
            model.module(*tensors)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ContractError(f"{model.name} does not run on inputs that its contract allows: {reason}") from error
    row_count = tensors[0].shape[0] if tensors[0].ndim else 1  # a fixed batch stays as large as it is
    return int(counter.get_total_flops()) // (2 * max(row_count, 1))


def usual_length(contract: Contract, sequence_length: int = SEQUENCE_LENGTH) -> int:
    """Return the size that a model's symbolic dimensions other than the batch are taken to have."""
    longest = [spec.preprocessing.max_length for spec in contract.inputs if isinstance(spec.preprocessing, TextPreprocessing)]
    return min([sequence_length, *longest])


@contextmanager
def _counted_kernels() -> Iterator[None]:
    """Turn off fused kernels of the CPU, which the counter does not know and takes for free."""
    fast_path, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn
    torch.backends.mha.set_fastpath_enabled(False)
    flags = mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call] # torch's own
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mkldnn.set_flags(_enabled=flags[0], _fp32_precision=None)  # type: ignore[no-untyped-call] # torch's own
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
