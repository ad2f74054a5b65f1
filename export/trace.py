"""PyTorch to ONNX: trace, prove, write.

Shape letters: ``b`` batch, ``s`` sequence.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from monograph.errors import ConfigError, ContractError, ExportError, MonographError
from monograph.export.golden import golden_json
from monograph.export.parity import BATCH_SIZES, TOLERANCE, Computation, ParityProof, open_when_run, prove_batches, prove_parity
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import write_onnx
from monograph.models.torch_model import TorchModel
from monograph.runtime.golden import GOLDEN_KEY, GoldenBatch

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
        ContractError: the module does not run on inputs that its contract allows.
        ExportError: PyTorch cannot express the model.
        ConfigError: PyTorch cannot write this opset.
        ParityError: the graph does not compute what the module does; nothing is written.
    """
    route = "dynamo" if dynamo else "torchscript"
    arguments = _arguments(model)
    with _quiet_exporter():
        graph = _by_dynamo(model, arguments, opset) if dynamo else _by_torchscript(model, arguments, opset)
    reached = graph.opset_imports.get("")
    if reached != opset:
        raise ConfigError(
            f"{model.name}: PyTorch's {route} exporter writes opset {reached} where {opset} was asked for: pass --opset {reached}"
        )
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
    candidate: Callable[[Path], Computation] = open_when_run,
) -> ParityProof:
    """Write ``graph`` to ``path`` with its contract, once the written file was proven equal to ``reference``.

    ``candidate`` is how the written file is run: a large one in a process of its own, one for a certain target there.

    Raises:
        ExportError: ``graph`` is no valid ONNX model.
        ParityError: it is not equal; ``path`` is as it was before.
    """
    proofs: list[ParityProof] = []

    def prove(staged: Path) -> dict[str, str]:
        candidate_run = candidate(staged)
        batches: list[GoldenBatch] = []
        proof = prove_parity(
            reference,
            candidate_run,
            contract,
            names=names,
            rows=rows,
            batch_sizes=batch_sizes,
            tolerance=tolerance,
            on_batch=batches.append,
        )
        proofs.append(proof)

        def prove_again(batch: GoldenBatch) -> GoldenBatch:
            ((_, golden),) = prove_batches(reference, candidate_run, [batch], contract, names=names, tolerance=tolerance)
            return golden

        golden = golden_json(
            batches,
            contract,
            staged,
            reference=proof.reference,
            tolerance=tolerance,
            prove_again=prove_again,
        )
        return {PROOF_KEY: json.dumps(asdict(proof)), GOLDEN_KEY: golden}

    entries = {CONTRACT_KEY: contract.to_json()} | (metadata or {})
    if tokenizer_json is not None:
        entries[TOKENIZER_KEY] = tokenizer_json
    try:
        write_onnx(graph, path, entries, prove)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{path.name} would not be a valid ONNX model: {reason}; nothing was written") from error
    return proofs[0]


def _arguments(model: TorchModel) -> tuple[torch.Tensor, ...]:
    """Draw inputs to trace with, and run the module on them: what it refuses is better told here than by an exporter."""
    inputs = random_inputs(model.contract, _TRACE_BATCH_SIZE, np.random.default_rng(_TRACE_SEED), _TRACE_SEQUENCE_LENGTH)
    try:
        model(inputs)
    except MonographError:
        raise
    except Exception as error:  # a module's own code may raise anything
        shapes = ", ".join(f"{name}: {array.dtype} {list(array.shape)}" for name, array in inputs.items())
        raise ContractError(
            f"{model.name} does not run in PyTorch on {shapes}, which its contract allows: {_first_line(error)}"
        ) from error
    return tuple(torch.from_numpy(inputs[spec.name]) for spec in model.contract.inputs)


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
            dynamic_shapes=_for_signature(model.module, shapes),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    except (torch.onnx.OnnxExporterError, ValueError) as error:  # the version converter behind it raises ValueError
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


def _for_signature(module: torch.nn.Module, shapes: tuple[Any, ...]) -> Any:
    """``forward(*args)`` takes all shapes under the one name."""
    try:
        first, *_ = inspect.signature(module.forward).parameters.values()
    except ValueError:  # traced by torch.jit, which the exporter refuses in its own words
        return shapes
    return {first.name: shapes} if first.kind is inspect.Parameter.VAR_POSITIONAL else shapes


def _export_message(model: TorchModel, route: str, error: BaseException, remedy: str) -> str:
    while error.__cause__ is not None:  # the exporter's own text speaks to its developers
        error = error.__cause__
    return f"{model.name} cannot be exported by {route}: {_first_line(error)}; {remedy}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """PyTorch's exporters print and log notes for their own developers; what matters reaches the user as an error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
