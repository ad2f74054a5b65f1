"""PyTorch to ONNX: trace, prove, write.

Shape letters: ``b`` batch, ``s`` sequence.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from monograph.errors import ExportError
from monograph.export.parity import BATCH_SIZES, TOLERANCE, Computation, ParityProof, prove_parity
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import write_onnx
from monograph.models.torch_model import TorchModel
from monograph.runtime.session import open_session

PROOF_KEY = "monograph.proof"
DEFAULT_OPSET = 20
_TRACE_SEED = 1
"""Another one than the proof's: what the trace baked in must not be what the proof runs."""
_TRACE_BATCH_SIZE, _TRACE_SEQUENCE_LENGTH = 2, 16


@dataclass(frozen=True)
class Exported:
    """An ONNX file that was proven equal to the model it came from."""

    path: Path
    contract: Contract
    proof: ParityProof
    route: str


def export_torch(
    model: TorchModel,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    dynamo: bool = True,
    rows: Rows | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export with every symbolic dimension of the contract left dynamic, prove parity, and only then write ``path``.

    ``dynamo=False`` is the fallback: PyTorch's older exporter, by TorchScript tracing.

    Raises:
        ExportError: PyTorch cannot express the model.
        ParityError: the graph does not compute what the module does; nothing is written.
    """
    route = "dynamo" if dynamo else "torchscript"
    model.module.eval()
    inputs = random_inputs(model.contract, _TRACE_BATCH_SIZE, np.random.default_rng(_TRACE_SEED), _TRACE_SEQUENCE_LENGTH)
    arguments = tuple(torch.from_numpy(inputs[spec.name]) for spec in model.contract.inputs)
    with _quiet_exporter():
        graph = _by_dynamo(model, arguments, opset) if dynamo else _by_torchscript(model, arguments, opset)
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
    return Exported(path, model.contract, proof, route)


def write_proven(
    graph: ir.Model,
    path: Path,
    contract: Contract,
    reference: Computation,
    *,
    names: tuple[str, str],
    rows: Rows | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
    tokenizer_json: str | None = None,
    metadata: dict[str, str] | None = None,
) -> ParityProof:
    """Write ``graph`` to ``path`` with its contract, once the written file was proven equal to ``reference``.

    Raises:
        ParityError: it is not; ``path`` is as it was before.
    """
    proofs: list[ParityProof] = []

    def prove(staged: Path) -> dict[str, str]:
        session = open_session(staged, spinning=False)
        proofs.append(
            prove_parity(reference, session, contract, names=names, rows=rows, batch_sizes=batch_sizes, tolerance=tolerance)
        )
        return {PROOF_KEY: json.dumps(asdict(proofs[0]))}

    entries = {CONTRACT_KEY: contract.to_json()} | (metadata or {})
    if tokenizer_json is not None:
        entries[TOKENIZER_KEY] = tokenizer_json
    write_onnx(graph, path, entries, prove)
    return proofs[0]


def _by_dynamo(model: TorchModel, arguments: tuple[torch.Tensor, ...], opset: int) -> ir.Model:
    dims: dict[str, Any] = {}
    shapes = tuple(
        {axis: dims.setdefault(dim, torch.export.Dim(dim, min=1)) for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in model.contract.inputs
    )
    try:
        program = torch.onnx.export(
            model.module,
            arguments,
            input_names=[spec.name for spec in model.contract.inputs],
            output_names=[spec.name for spec in model.contract.outputs],
            dynamic_shapes={"args": shapes} if _takes_star_args(model.module) else shapes,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(_export_message(model, "dynamo", error, "try --no-dynamo, PyTorch's older exporter")) from error
    if program is None:
        raise ExportError(f"{model.name}: torch.onnx gave back no graph")
    return program.model


def _by_torchscript(model: TorchModel, arguments: tuple[torch.Tensor, ...], opset: int) -> ir.Model:
    axes = {
        spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in (*model.contract.inputs, *model.contract.outputs)
    }
    with TemporaryDirectory(prefix="monograph-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                model.module,
                arguments,
                path,
                input_names=[spec.name for spec in model.contract.inputs],
                output_names=[spec.name for spec in model.contract.outputs],
                dynamic_axes=axes,
                opset_version=min(opset, DEFAULT_OPSET),
                dynamo=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            raise ExportError(_export_message(model, "TorchScript", error, "try --dynamo, the default")) from error
        graph = ir.load(path)
        ir.external_data.load_to_model(graph)
        return graph


def _takes_star_args(module: torch.nn.Module) -> bool:
    return bool(module.forward.__code__.co_flags & 0x04)


def _export_message(model: TorchModel, route: str, error: Exception, remedy: str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{model.name} cannot be exported by {route}: {lines[0] if lines else type(error).__name__}; {remedy}"


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """PyTorch's exporters print notes for their own developers; what matters reaches the user as an error."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
