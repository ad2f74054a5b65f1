"""Hugging Face models to ONNX by two routes, optimum's and our own, that end in one proof and one contract.

Shape letters: ``b`` batch, ``s`` sequence, ``k`` channels, ``h`` height, ``w`` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from monograph.errors import ConfigError, ExportError, MissingPackageError
from monograph.export.parity import BATCH_SIZES, TOLERANCE
from monograph.export.trace import DEFAULT_OPSET, Exported, export_torch, write_proven
from monograph.models.contract import Contract, TensorSpec, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.huggingface import HuggingFaceModule, load_huggingface, quiet_transformers
from monograph.models.torch_model import TorchModel

ROUTES = ("auto", "optimum", "dynamo")
_OPTIMUM_OPSETS = range(14, 21)
"""Optimum traces by PyTorch's older exporter, which ends at 20; attention needs 14."""
_TRACE_SEED, _TRACE_BATCH_SIZE, _TRACE_SEQUENCE_LENGTH = 1, 2, 16


def export_huggingface(
    id_or_folder: str,
    path: Path,
    *,
    task: str | None = None,
    opset: int | None = None,
    route: str = "auto",
    allow_pickle: bool = False,
    rows: Rows | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Load a model as :func:`~monograph.models.huggingface.load_huggingface` does and export it, batch and sequence dynamic.

    Args:
        id_or_folder: a folder with a ``config.json``, or an id of the Hugging Face hub.
        path: the ONNX file to write.
        task: one of ``monograph.models.huggingface.TASKS``; by default what the architecture says.
        opset: ONNX opset, 20 by default.
        route: ``optimum`` (needs the extra ``hf``), ``dynamo``, or ``auto``: optimum where it is installed, knows the
            architecture and writes the opset.
        allow_pickle: read weights that are there as a pickle only, by torch's ``weights_only`` loader.
        rows: what the proof runs on; fresh random rows by default.
        batch_sizes: at which the proof is made.
        tolerance: largest absolute error allowed, as a share of the largest absolute reference value.

    Raises:
        SourceError: the model cannot be used.
        ConfigError: there is no such task or route, or the route cannot write this opset.
        MissingPackageError: optimum is asked for by name and is not installed, or not in versions that fit together.
        ExportError: the route cannot express the model.
        ParityError: the graph does not compute what the module does; nothing is written.
    """
    _require_known(route)
    model = load_huggingface(id_or_folder, task=task, allow_pickle=allow_pickle)
    return export_huggingface_model(
        model, path, opset=opset, route=route, rows=rows, batch_sizes=batch_sizes, tolerance=tolerance
    )


def export_huggingface_model(
    model: TorchModel,
    path: Path,
    *,
    opset: int | None = None,
    route: str = "auto",
    rows: Rows | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a model that ``load_huggingface`` gave; arguments and errors are those of :func:`export_huggingface`."""
    _require_known(route)
    opset = opset or DEFAULT_OPSET
    graph = None if route == "dynamo" else _by_optimum(model, opset, required=route == "optimum")
    if graph is None:
        return export_torch(model, path, opset=opset, rows=rows, batch_sizes=batch_sizes, tolerance=tolerance)
    proof = write_proven(
        graph,
        path,
        model.contract,
        model,
        names=(f"{model.name} in PyTorch", path.name),
        rows=rows,
        batch_sizes=batch_sizes,
        tolerance=tolerance,
        tokenizer_json=model.tokenizer_json,
    )
    return Exported(path, model.contract, proof, "optimum")


def _require_known(route: str) -> None:
    if route not in ROUTES:
        raise ConfigError(f"unknown route {route!r} for a Hugging Face model: choose from {', '.join(ROUTES)}")


def _by_optimum(model: TorchModel, opset: int, *, required: bool) -> ir.Model | None:
    """Return optimum's graph under the contract's names; None where optimum cannot be used and is not required."""
    assert isinstance(model.module, HuggingFaceModule)
    try:
        if opset not in _OPTIMUM_OPSETS:
            first, last = _OPTIMUM_OPSETS[0], _OPTIMUM_OPSETS[-1]
            raise ConfigError(f"optimum writes opsets {first} to {last}, got {opset}: take --route dynamo for this one")
        with quiet_transformers():
            export, tasks = _import_optimum()
            config = _optimum_config(tasks, model)
    except (ConfigError, MissingPackageError, ExportError):
        if required:
            raise
        return None
    with quiet_transformers(), _restored(model.module.model), TemporaryDirectory(prefix="monograph-") as folder:
        file = Path(folder) / "model.onnx"
        try:
            export(model.module.model, config, file, opset=opset, disable_dynamic_axes_fix=True)
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportError(f"{model.name} cannot be exported by optimum: {reason}; try --route dynamo") from error
        graph = ir.load(file)
        ir.external_data.load_to_model(graph)
    _state_shapes(graph, model.contract)
    return graph


def _import_optimum() -> tuple[Any, Any]:
    """Return optimum's ``export`` and its ``TasksManager``."""
    try:
        metadata.version("optimum-onnx")
        from optimum.exporters.onnx import export
        from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise MissingPackageError(
            f"optimum's exporter is not installed, or not in versions that fit together ({error}): "
            "pip install 'monograph[hf]', or take --route dynamo"
        ) from error
    return export, TasksManager


def _optimum_config(tasks: Any, model: TorchModel) -> Any:
    """Return optimum's export configuration of the model, but for the inputs and outputs, which the contract states."""
    assert isinstance(model.module, HuggingFaceModule)
    inner, task = model.module.model, model.module.task
    try:
        constructor = tasks.get_exporter_config_constructor("onnx", model=inner, task=task, library_name="transformers")
        config = constructor(inner.config)
    except (KeyError, ValueError) as error:
        reason = str(error.args[0]).partition(". ")[0]
        raise ExportError(f"optimum does not export {model.name} for {task}: {reason}; take --route dynamo") from error
    contract = model.contract
    rows = random_inputs(contract, _TRACE_BATCH_SIZE, np.random.default_rng(_TRACE_SEED), _TRACE_SEQUENCE_LENGTH)
    config.__class__ = type(
        "ContractOnnxConfig",
        (type(config),),
        {
            "inputs": property(lambda _: _dynamic_axes(contract.inputs)),
            "outputs": property(lambda _: _dynamic_axes(contract.outputs)),
            "generate_dummy_inputs": lambda *_, **__: {name: torch.from_numpy(array) for name, array in rows.items()},
        },
    )
    return config


def _dynamic_axes(specs: Sequence[TensorSpec]) -> dict[str, dict[int, str]]:
    return {spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in specs}


@contextmanager
def _restored(model: torch.nn.Module) -> Iterator[None]:
    """Optimum leaves a ``forward`` of its own on the model: the reference of the proof must be the model's."""
    try:
        yield
    finally:
        vars(model).pop("forward", None)


def _state_shapes(graph: ir.Model, contract: Contract) -> None:
    """Write the contract's shapes on the graph: the exporter leaves names of its own on axes of its outputs."""
    shapes = {spec.name: spec.shape for spec in (*contract.inputs, *contract.outputs)}
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
