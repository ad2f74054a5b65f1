"""A pretrained model as a trunk, which turns inputs into features, and a head, which turns features into what a task asks for.

The head is the linear layer that makes the model's output. A model without one, or one that gives embeddings, is all trunk;
embeddings of tokens are averaged over the tokens that are no padding (Reimers and Gurevych 2019, arXiv 1908.10084).

Shape letters: ``b`` batch, ``s`` sequence, ``d`` width of the features, ``c`` width of the output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from monograph.errors import ContractError
from monograph.models.contract import Contract, Kind, TensorSpec, TextPreprocessing, random_inputs
from monograph.models.torch_model import TorchModel, output_tensors
from monograph.pipelines.adapt.task import Task, TaskKind

FEATURES = "features"
_MASK = "attention_mask"
_PROBE_ROWS = 3


class Network(nn.Module):
    """Trunk and head; what is frozen stays in eval mode while the rest is trained."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return float32 ``[b, c]``."""
        output: Tensor = self.head(self.trunk(*inputs))
        return output

    def train(self, mode: bool = True) -> Network:
        """Set the mode; a layer none of whose weights take a gradient keeps its statistics and drops nothing out."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self


class Trunk(nn.Module):
    """A module whose first output is the features; those of tokens are averaged where ``mask_at`` says which input masks them."""

    def __init__(self, module: nn.Module, mask_at: int | None, is_sequence: bool) -> None:
        super().__init__()
        self.module, self.mask_at, self.is_sequence = module, mask_at, is_sequence

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return float32 ``[b, d]``."""
        features = output_tensors(self.module(*inputs))[0]
        if self.is_sequence:
            return pooled(features, None if self.mask_at is None else inputs[self.mask_at])
        return features.flatten(1)


def pooled(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over tokens, float32 ``[b, d]`` of ``[b, s, d]``; those whose mask ``[b, s]`` is 0 do not count."""
    if mask is None:
        return features.mean(1)
    weights = mask.to(features.dtype)[:, :, None]  # [b x s x 1]
    return (features * weights).sum(1) / weights.sum(1).clamp(min=1)


class Scored(nn.Module):
    """A network whose scores leave as probabilities: what is shipped, not what is trained."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return float32 ``[b, c]`` from 0 to 1."""
        return torch.sigmoid(self.network(*inputs))


@dataclass(frozen=True)
class Split:
    """A model cut into its trunk and, where it has one, its own head."""

    trunk: Trunk
    head: nn.Linear | None
    """None for a model that is all trunk."""
    width: int
    """Of the features, ``d``."""


def split_model(model: TorchModel) -> Split:
    """Cut ``model`` before the linear layer that makes its output.

    Raises:
        ContractError: the module does not run on inputs that its contract allows, or gives no features by row.
    """
    inputs = _probe(model.contract)
    head_name = None if model.contract.kind is Kind.EMBEDDING else _head_name(model, inputs)
    module = copy.deepcopy(model.module)
    head = None
    if head_name is not None:
        found = module.get_submodule(head_name)
        assert isinstance(found, nn.Linear)
        head = found
        _replace(module, head_name, nn.Identity())
    output = _run(model, module, inputs)
    is_sequence = output.dim() == 3
    if output.dim() < 2 or len(output) != _PROBE_ROWS:
        raise ContractError(f"{model.name} gives {list(output.shape)} for {_PROBE_ROWS} rows, expected features for each row")
    trunk = Trunk(module, _mask_at(model.contract) if is_sequence else None, is_sequence)
    width = output.shape[-1] if is_sequence else int(np.prod(output.shape[1:]))
    return Split(trunk, head, width)


def adaptable(model: TorchModel, task: Task, seed: int) -> tuple[TorchModel, bool]:
    """Return ``model`` for a task, float32 ``[b, c]``, and whether it keeps its head.

    The head stays where it does the task already: one of classes of the same names, or one of numbers as wide. Any other model
    gets a linear head with fresh weights. Scores leave it as logits, for training; see :class:`Scored`.

    Raises:
        ContractError: as :func:`split_model`; or the model's scores are shares already, not logits.
    """
    torch.manual_seed(seed)
    contract = task.contract(model.contract.inputs)
    if _does_task(model, task):
        if contract.kind is Kind.SCORES and _ends_in_sigmoid(model):
            raise ContractError(
                f"{model.name} ends in a sigmoid, and scores are trained by their logits: give the network without it, "
                "which comes back when it is exported"
            )
        split = split_model(model)
        if split.head is None:
            kept = copy.deepcopy(model.module)
            return TorchModel(Network(_Whole(kept), nn.Identity()), contract, model.name, model.tokenizer_json), True
        return TorchModel(Network(split.trunk, split.head), contract, model.name, model.tokenizer_json), True
    split = split_model(model)
    head = nn.Linear(split.width, task.width)
    return TorchModel(Network(split.trunk, head), contract, model.name, model.tokenizer_json), False


def shipped(model: TorchModel) -> TorchModel:
    """Return the adapted model as it leaves: scores as probabilities, everything else as it is."""
    if model.contract.kind is not Kind.SCORES:
        return model
    return replace(model, module=Scored(model.module).eval())


def network_of(model: TorchModel) -> Network:
    """Return the module of a model that :func:`adaptable` made."""
    assert isinstance(model.module, Network)
    return model.module


def head_model(model: TorchModel) -> TorchModel:
    """Return the head alone, as a model of ``features`` float32 ``[b, d]``."""
    head = network_of(model).head
    assert isinstance(head, nn.Linear)
    spec = TensorSpec(FEATURES, "float32", ("batch", head.in_features))
    return TorchModel(head, replace(model.contract, inputs=(spec,)), f"head of {model.name}")


class _Sigmoids(TorchFunctionMode):
    """Collects what each sigmoid gives, by whichever of its names it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in (torch.sigmoid, Tensor.sigmoid, nn.functional.sigmoid):
            self.given.append(output)
        return output


def _ends_in_sigmoid(model: TorchModel) -> bool:
    sigmoids = _Sigmoids()
    with sigmoids:
        output = _run(model, model.module, _probe(model.contract))
    return any(_is_same(one, output) for one in sigmoids.given)


class _Whole(nn.Module):
    """A model that does its task as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return output_tensors(self.module(*inputs))[0].flatten(1)


def _does_task(model: TorchModel, task: Task) -> bool:
    contract, width = model.contract, model.contract.output.shape[-1] if model.contract.output.shape else None
    if contract.kind is not task.kind.output_kind or width != task.width:
        return False
    return task.kind not in (TaskKind.CLASSIFICATION, TaskKind.MULTI_LABEL) or contract.class_names == task.class_names


def _probe(contract: Contract) -> list[Tensor]:
    rows = random_inputs(contract, _PROBE_ROWS, np.random.default_rng(0))
    return [torch.from_numpy(rows[spec.name]) for spec in contract.inputs]


def _run(model: TorchModel, module: nn.Module, inputs: list[Tensor]) -> Tensor:
    module.eval()
    try:
        with torch.inference_mode():
            return output_tensors(module(*inputs))[0]
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ContractError(f"{model.name} does not run on inputs that its contract allows: {reason}") from error


def _head_name(model: TorchModel, inputs: list[Tensor]) -> str | None:
    """Return the name of the linear layer whose output is the model's, flattened or as it is; None where there is none."""
    with _recorded(model.module) as given:
        output = _run(model, model.module, inputs)
    for name, value in reversed(given):
        if _is_same(value, output):
            return name
    return None


def _is_same(value: Tensor, output: Tensor) -> bool:
    """Tell whether ``value`` is the model's output, flattened or as it is."""
    return value.numel() == output.numel() and torch.equal(value.flatten(), output.flatten())


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect what each linear layer gives while the context is open, in the order of the calls."""
    given: list[tuple[str, Tensor]] = []
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name:

            def record(_layer: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                given.append((name, output))

            hooks.append(layer.register_forward_hook(record))
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)


def _mask_at(contract: Contract) -> int | None:
    """Return which input says which tokens are padding."""
    for place, spec in enumerate(contract.inputs):
        role = spec.preprocessing.role if isinstance(spec.preprocessing, TextPreprocessing) else spec.name
        if role == _MASK:
            return place
    return None
