"""The models of a pipeline file, loaded as PyTorch modules, and the baselines made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, load_python_model, parse_source
from monograph.pipelines.config import ModelConfig, PipelineConfig
from monograph.runtime.measure import Contender

if TYPE_CHECKING:
    from monograph.models.torch_model import TorchModel


def load_member(model: ModelConfig, seed: int = 0) -> TorchModel:
    """Load a model as a PyTorch module; fresh weights are drawn from ``seed``.

    Raises:
        ConfigError: it is an ONNX file.
        SourceError: it cannot be loaded.
    """
    import torch

    source = parse_source(model.source)
    torch.manual_seed(seed)
    if source.scheme is Scheme.PYTHON:
        return load_python_model(source, arguments=model.arguments, weights=model.weights)
    if source.scheme is Scheme.HUGGING_FACE:
        from monograph.models.huggingface import load_huggingface

        return load_huggingface(source.location, task=model.task)
    raise ConfigError(f"{model.source} is an ONNX file, which cannot be trained: remove `train` or give the PyTorch model")


def load_member_contract(model: ModelConfig) -> tuple[Contract, str | None]:
    """Return a model's contract and, for text, its tokenizer."""
    source = parse_source(model.source)
    if source.scheme is Scheme.ONNX:
        file = read_onnx(source.path)
        return file.contract, file.tokenizer_json
    loaded = load_member(model)
    return loaded.contract, loaded.tokenizer_json


def baseline_contenders(
    config: PipelineConfig,
    files: Mapping[str, OnnxFile],
    trained: Mapping[str, Path],
    weights: Mapping[str, float],
    form: str,
) -> dict[str, Contender]:
    """Return the baselines that were asked for and can be had, by name.

    PyTorch eager needs every member as a ``py:`` source that is not adapted, for its head is in no source.
    """
    running = {name: model for name, model in config.models.items() if weights[name] > 0}
    contenders: list[Contender] = []
    if "sessions" in config.measure.baselines:
        contenders.append(sessions_contender({name: files[name] for name in running}, files["fused"], weights, form))
    all_python = all(parse_source(model.source).scheme is Scheme.PYTHON and model.adapt is None for model in running.values())
    if "eager" in config.measure.baselines and all_python:
        contenders.append(eager_contender(running, files["fused"], weights, form, trained))
    return {contender.name: contender for contender in contenders}


def sessions_contender(members: Mapping[str, OnnxFile], fused: OnnxFile, weights: Mapping[str, float], form: str) -> Contender:
    """Return what people run without one graph: one session a member in one process, outputs combined by numpy."""
    return Contender(
        f"{len(members)} sessions + numpy",
        "monograph.pipelines.baselines:load_sessions",
        {"members": [_session_member(file, fused.contract, weights[name]) for name, file in members.items()]}
        | _common_arguments(fused, form),
        fused.contract,
        fused.sha256,
        sum(file.size_bytes for file in members.values()),
    )


def eager_contender(
    members: Mapping[str, ModelConfig],
    fused: OnnxFile,
    weights: Mapping[str, float],
    form: str,
    trained: Mapping[str, Path] | None = None,
) -> Contender:
    """Return the same fusion in PyTorch eager mode; ``trained`` holds the folders of members trained in this run."""
    return Contender(
        "PyTorch eager",
        "monograph.pipelines.baselines:load_eager",
        {"members": [_eager_member(model, (trained or {}).get(name), weights[name]) for name, model in members.items()]}
        | _common_arguments(fused, form),
        fused.contract,
        fused.sha256,
        fused.size_bytes,
    )


def _common_arguments(fused: OnnxFile, form: str) -> dict[str, object]:
    return {"softmax_first": form == "probs", "output_name": fused.contract.output.name}


def _session_member(file: OnnxFile, fused: Contract, weight: float) -> dict[str, object]:
    own = [spec.name for spec in file.contract.inputs]
    shared = [spec.name for spec in fused.inputs]
    pairs = {name: name for name in own} if set(own) == set(shared) else dict(zip(own, shared, strict=True))
    return {
        "path": str(file.path.absolute()),
        "inputs": pairs,
        "output": file.contract.output.name,
        "kind": file.contract.kind,
        "weight": weight,
    }


def _eager_member(model: ModelConfig, trained: Path | None, weight: float) -> dict[str, object]:
    weights = trained / "model.safetensors" if trained else model.weights
    return {
        "source": model.source,
        "arguments": model.arguments,
        "weights": None if weights is None else str(weights.absolute()),
        "weight": weight,
    }
