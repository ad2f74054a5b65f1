"""ORT format: the file that ONNX Runtime's smaller builds for phones load, made from an ONNX file and proven equal to it.

Runtime style keeps the nodes as execution providers want them, and notes the fusions of the rest for when the file is loaded.
Fixed style fuses at once, for the processor alone: what is fused then is lost to a provider that does not know the fused
operator. https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from monograph.errors import ConfigError, ExportError, SourceError
from monograph.export.parity import TOLERANCE, ParityProof, prove_parity
from monograph.export.predict.operator_lists import COREML_MLPROGRAM, COREML_NEURALNETWORK, NNAPI, listed_operators
from monograph.models.contract import CONTRACT_KEY
from monograph.models.data.rows import Rows
from monograph.models.files import publish, staging_folder
from monograph.models.onnx_file import LARGEST_INLINE_BYTES, OnnxFile
from monograph.runtime.session import ORT_ERRORS, open_session
from monograph.runtime.session_spec import SessionSpec

Style = Literal["Runtime", "Fixed"]
Platform = Literal["arm", "amd64"]
_BATCH_SIZES = (1, 2)
_REPLAY = SessionSpec(config={"session.enable_saved_runtime_optimizations": "1"})
_LISTS = {"NNAPI": NNAPI, "CoreML MLProgram": COREML_MLPROGRAM, "CoreML NeuralNetwork": COREML_NEURALNETWORK}


@dataclass(frozen=True)
class OrtFormat:
    """A file in ORT format with what goes with it."""

    path: Path
    config: Path
    """The operators that a reduced build of ONNX Runtime has to include, for its ``--include_ops_by_config``."""
    style: Style
    operators: tuple[str, ...]
    """The same: ``ai.onnx;11;Conv``."""
    size_bytes: int
    proof: ParityProof
    warnings: tuple[str, ...] = ()


def to_ort_format(
    file: OnnxFile,
    output: Path,
    style: Style = "Runtime",
    *,
    platform: Platform = "arm",
    rows: Rows | None = None,
    tolerance: float = TOLERANCE,
) -> OrtFormat:
    """Write ``file`` in ORT format to ``output``, and beside it the operators that it needs.

    Proven equal to the ONNX file at batch 1 and 2 on ``rows`` or random ones, in Runtime style with the noted fusions done too.

    Raises:
        ConfigError: ``output`` does not end in ``.ort``, or ``style`` is neither.
        SourceError: the model is too large for the format.
        ExportError: ONNX Runtime cannot convert it, or the contract did not come through.
        ParityError: the new file computes something else; nothing is written.
    """
    if output.suffix != ".ort":
        raise ConfigError(f"output {str(output)!r} does not end in .ort: give the file to write, such as model.ort")
    if style not in ("Runtime", "Fixed"):
        raise ConfigError(f"unknown style {style!r}: choose from Runtime, Fixed")
    if file.size_bytes > LARGEST_INLINE_BYTES:
        raise SourceError(f"{file.path} has {file.size_bytes} bytes, and ORT format holds less than 2 GiB: take a smaller model")
    config = output.with_suffix(".required_operators.config")
    with staging_folder(output.parent) as folder:
        converted, operators = _convert(file, folder, style, platform)
        proof = _prove(file, converted, style, rows, tolerance)
        staged_config = folder / config.name
        staged_config.write_text("".join(f"{line}\n" for line in (f"# {output.name}", *operators)), encoding="utf-8")
        size_bytes = converted.stat().st_size
        publish(staged_config, config)
        publish(converted, output)
    doubts = _fusion_warnings(operators) if style == "Fixed" else ()
    return OrtFormat(output, config, style, operators, size_bytes, proof, doubts)


def _convert(file: OnnxFile, folder: Path, style: Style, platform: Platform) -> tuple[Path, tuple[str, ...]]:
    """Convert a copy, for ONNX Runtime's converter writes beside what it reads; return the file and the operators."""
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    with tempfile.TemporaryDirectory(dir=folder) as name:
        copy = Path(name) / "model.onnx"
        onnx.save(onnx.load(str(file.path)), copy)
        try:
            with _silence():
                convert_onnx_models_to_ort(copy, optimization_styles=[OptimizationStyle[style]], target_platform=platform)
        except ORT_ERRORS as error:
            raise ExportError(f"ONNX Runtime cannot convert {file.path} to ORT format: {str(error).splitlines()[0]}") from error
        suffix = ".with_runtime_opt" if style == "Runtime" else ""
        lines = (copy.with_name(f"model.required_operators{suffix}.config")).read_text(encoding="utf-8").splitlines()
        converted = copy.with_name(f"model{suffix}.ort").rename(folder / "model.ort")
    return converted, tuple(line for line in lines if line and not line.startswith("#"))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the converter's progress off the screen; what goes wrong is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the converter leaves the files that it reads to be closed later
            yield
    finally:
        logging.disable(level)


def _prove(file: OnnxFile, converted: Path, style: Style, rows: Rows | None, tolerance: float) -> ParityProof:
    """Prove the file beside the ONNX file loaded alike, and return the worse proof.

    In Runtime style that is twice: by default nothing is fused when it is loaded, and on demand the fusions that it notes. For a
    quantised model the two round differently, so each has a reference of its own.
    """
    session = open_session(converted)
    if session.metadata.get(CONTRACT_KEY) != file.metadata.get(CONTRACT_KEY):
        raise ExportError(f"the contract of {file.path.name} did not come through to ORT format; nothing was written")
    optimised = open_session(file.path)
    if style == "Fixed":
        pairs = [(optimised, session)]
    else:
        as_written = open_session(file.path, mapped=True)
        pairs = [(as_written, session), (optimised, open_session(converted, spec=_REPLAY))]
    names = (file.path.name, f"its ORT format in {style} style")
    proofs = [
        prove_parity(reference, one, file.contract, names=names, rows=rows, batch_sizes=_BATCH_SIZES, tolerance=tolerance)
        for reference, one in pairs
    ]
    return max(proofs, key=lambda proof: proof.worst.relative_error)


def _fusion_warnings(operators: tuple[str, ...]) -> tuple[str, ...]:
    """Return a warning for each list that lacks fused operators of the file."""
    fused = {name for line in operators if line.startswith("com.microsoft;") for name in line.split(";")[2].split(",")}
    told = []
    for title, name in _LISTS.items():
        missing = sorted(operator for operator in fused if f"com.microsoft:{operator}" not in listed_operators(name))
        if missing:
            told.append(
                f"Fixed style fused nodes to {', '.join(missing)}, which {title} does not take: convert in Runtime style for it"
            )
    return tuple(told)
