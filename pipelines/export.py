"""The verb ``export``: any source to a proven ONNX file with a contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monograph.errors import ConfigError
from monograph.export.parity import TOLERANCE
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, load_graph, read_onnx
from monograph.models.sources import Scheme, Source, load_python_model, parse_class_names, parse_input, parse_source
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.runtime.session import open_session

if TYPE_CHECKING:
    from monograph.export.trace import Exported
    from monograph.models.torch_model import TorchModel

_PROOF_ROWS = 64
ROUTES = ("auto", "dynamo", "torchscript", "optimum")


def export_model(
    source: str | TorchModel,
    output: str | Path,
    *,
    task: str | None = None,
    opset: int | None = None,
    route: str = "auto",
    arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    allow_pickle: bool = False,
    inputs: Sequence[str] = (),
    class_names: str | Sequence[str] | None = None,
    kind: str | None = None,
    data: str | DataSpec | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export ``source`` to the ONNX file ``output``, proven equal to it at batch 1, 2 and 5.

    Args:
        source: ``file.onnx`` (to give it a contract), ``hf:ID_OR_FOLDER``, ``py:package.module:factory`` or a
            :class:`~monograph.models.torch_model.TorchModel`.
        output: where to write; a name that ends in ``.ort`` turns an ONNX file into ONNX Runtime's own format, for phones.
        task: of a Hugging Face model; guessed from its architecture by default.
        opset: ONNX opset, 20 by default.
        route: ``auto``, ``dynamo``, ``torchscript`` or (Hugging Face only) ``optimum``.
        arguments: for the factory of a ``py:`` source.
        weights: safetensors file to load into the module of a ``py:`` source.
        allow_pickle: read weights from a pickle by torch's ``weights_only`` loader.
        inputs: ``NAME:DTYPE:DIM,DIM,…`` for a module without a contract.
        class_names: ``a,b,c``, a file, or a sequence; overrides what the source says.
        kind: what the output is: logits, probabilities, regression, embedding or scores; overrides likewise.
        data: DATA whose rows the proof runs on; fresh random rows by default.
        tolerance: largest absolute error allowed, as a share of the largest absolute reference value.

    Raises:
        InputError: the source, the data or an option cannot be used.
        ExportError: the model cannot be expressed in ONNX.
        ParityError: the file would not compute what the model does; nothing is written.
    """
    from monograph.export.trace import DEFAULT_OPSET, export_torch

    if Path(output).suffix == ".ort":
        return _export_ort_format(source, Path(output), data, tolerance)
    path = checked_output(output)
    if route not in ROUTES:
        raise ConfigError(f"unknown route {route!r}: choose from {', '.join(ROUTES)}")
    parsed = parse_source(source) if isinstance(source, str) else None
    if parsed is not None and parsed.scheme is Scheme.ONNX:
        return _adopt_onnx(read_onnx(parsed.path), path, class_names, kind, data, tolerance)
    model = _load(source, parsed, task, arguments, weights, allow_pickle, inputs)
    model = replace(model, contract=override_contract(model.contract, class_names, kind))
    rows = rows_for(data, model.contract, model.tokenizer_json)
    if parsed is not None and parsed.scheme is Scheme.HUGGING_FACE and route != "torchscript":
        from monograph.export.huggingface import export_huggingface_model

        return export_huggingface_model(model, path, opset=opset, route=route, rows=rows, tolerance=tolerance)
    if route == "optimum":
        raise ConfigError("--route optimum is for hf: sources only")
    return export_torch(model, path, opset=opset or DEFAULT_OPSET, dynamo=route != "torchscript", rows=rows, tolerance=tolerance)


def _export_ort_format(source: str | TorchModel, output: Path, data: str | DataSpec | None, tolerance: float) -> Exported:
    from monograph.export.ort_format import to_ort_format
    from monograph.export.trace import Exported

    parsed = parse_source(source) if isinstance(source, str) else None
    if parsed is None or parsed.scheme is not Scheme.ONNX:
        raise ConfigError(f"ORT format is made from an ONNX file: export {source} to one first, then that to {output.name}")
    file = read_onnx(parsed.path)
    made = to_ort_format(file, output, rows=rows_for(data, file.contract, file.tokenizer_json), tolerance=tolerance)
    return Exported(made.path, file.contract, made.proof, f"ONNX Runtime's converter in {made.style} style")


def checked_output(output: str | Path) -> Path:
    """Return the path to write a model to.

    Raises:
        ConfigError: it does not end in ``.onnx``, or is a folder.
    """
    path = Path(output)
    if path.suffix != ".onnx":
        raise ConfigError(f"output {str(output)!r} does not end in .onnx: give the file to write, such as model.onnx")
    if path.is_dir():
        raise ConfigError(f"output {output} is a folder: give the file to write")
    return path


def _load(
    source: str | TorchModel,
    parsed: Source | None,
    task: str | None,
    arguments: Mapping[str, Any] | None,
    weights: str | Path | None,
    allow_pickle: bool,
    inputs: Sequence[str],
) -> TorchModel:
    if parsed is None:
        assert not isinstance(source, str)
        return source
    if parsed.scheme is Scheme.HUGGING_FACE:
        from monograph.models.huggingface import load_huggingface

        return load_huggingface(parsed.location, task=task, allow_pickle=allow_pickle)
    return load_python_model(
        parsed,
        arguments=arguments,
        weights=None if weights is None else Path(weights),
        allow_pickle=allow_pickle,
        inputs=[parse_input(text) for text in inputs],
    )


def override_contract(contract: Contract, class_names: str | Sequence[str] | None, kind: str | None) -> Contract:
    """Return ``contract`` with what the user says of classes and kind.

    Raises:
        ConfigError: there is no such kind.
        ContractError: the number of names is not the number of classes.
    """
    if kind is not None:
        if kind not in list(Kind):
            raise ConfigError(f"unknown kind {kind!r}: choose from {', '.join(Kind)}")
        contract = replace(contract, kind=Kind(kind), assumed=())
    if class_names is not None:
        names = parse_class_names(class_names) if isinstance(class_names, str) else tuple(class_names)
        contract = contract.with_class_names(names)
    return contract


def rows_for(data: str | DataSpec | None, contract: Contract, tokenizer_json: str | None) -> Rows | None:
    """Return a few rows of DATA for a proof, or None where no data is given."""
    spec = as_data_spec(data)
    return None if spec is None else spec.load(contract, tokenizer_json, limit=_PROOF_ROWS)


def _adopt_onnx(
    file: OnnxFile,
    path: Path,
    class_names: str | Sequence[str] | None,
    kind: str | None,
    data: str | DataSpec | None,
    tolerance: float,
) -> Exported:
    """Give an ONNX file a stated contract; the copy is proven equal to the original."""
    from monograph.export.trace import Exported, write_proven

    contract = override_contract(file.contract, class_names, kind)
    proof = write_proven(
        load_graph(file.path),
        path,
        contract,
        open_session(file.path),
        names=(str(file.path), path.name),
        rows=rows_for(data, contract, file.tokenizer_json),
        tolerance=tolerance,
        tokenizer_json=file.tokenizer_json,
    )
    return Exported(path, contract, proof, "onnx")
