"""The operator lists of mobile execution providers that travel in ONNX Runtime's own package."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from monograph.errors import MissingPackageError

NNAPI, COREML_MLPROGRAM, COREML_NEURALNETWORK = (
    "nnapi_supported_ops.md",
    "coreml_supported_mlprogram_ops.md",
    "coreml_supported_neuralnetwork_ops.md",
)
_ROW = re.compile(r"^\|\s*(?P<domain>ai\.onnx|com\.microsoft)[:.](?P<operator>\w+)\s*\|", re.MULTILINE)
"""The lists write ``ai.onnx:Add``, and once ``ai.onnx.ReduceSum``."""
_SPELLINGS = {"Argmax": "ArgMax"}
"""Names that the lists write otherwise than ONNX does."""


@cache
def listed_operators(name: str) -> frozenset[str]:
    """Return the operators of one list: ``Add``, or with another domain than ONNX's ``com.microsoft:QLinearAdd``.

    Raises:
        MissingPackageError: this build of ONNX Runtime does not carry the list.
    """
    # onnxruntime is imported by runtime.session, which every prediction goes through.
    import onnxruntime.tools.mobile_helpers as helpers

    path = Path(helpers.__file__).parent / name
    if not path.is_file():
        raise MissingPackageError(f"onnxruntime {onnxruntime_version()} carries no {name}: pip install -U onnxruntime")
    operators = set()
    for row in _ROW.finditer(path.read_text(encoding="utf-8")):
        operator = _SPELLINGS.get(row["operator"], row["operator"])
        operators.add(operator if row["domain"] == "ai.onnx" else f"{row['domain']}:{operator}")
    return frozenset(operators)


def onnxruntime_version() -> str:
    """Return the version of the installed ONNX Runtime, whichever package brings it."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "?"
