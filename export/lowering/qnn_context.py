"""Compiled for Qualcomm's Hexagon NPU beforehand: the device loads the binary instead of compiling the graph at its first start.

The compiler that comes with onnxruntime-qnn is the same on x86-64, where its simulator proves what it wrote, and on a Snapdragon.
Source: https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html#qnn-context-binary-cache-feature
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from monograph.errors import ExportError, SourceError
from monograph.export.lowering.lowering import QUANTISED_TOLERANCE, Lowering, LoweringJob
from monograph.export.lowering.qdq_htp import QDQ_HTP
from monograph.runtime.on_target import check_runs_here
from monograph.runtime.process import call_in_fresh_process
from monograph.runtime.targets import find_target

_TARGET = "qnn-htp"


def _convert(job: LoweringJob) -> Path:
    target = find_target(_TARGET).with_options(job.options)
    check_runs_here(target)
    path = job.folder / "compiled.onnx"
    arguments = {"path": str(job.source.path), "output": str(path), "spec": asdict(target.session)}
    try:
        call_in_fresh_process("monograph.runtime.session:compile_model", arguments)
    except SourceError as error:
        chosen = ", ".join(f"{key}={value}" for key, value in job.options.items())
        raise ExportError(
            f"{job.source.path.name}: {error}; `monograph measure {job.source.path.name} --on {_TARGET}` names the nodes that it "
            f"does not take{f', if {chosen} is not what it does not know' if chosen else ''}"
        ) from error
    return path


QNN_CONTEXT = Lowering(
    "qnn-context",
    "compiled for a Qualcomm chip, one node EPContext; a float model is quantised by qdq-htp first",
    _convert,
    tolerance=QUANTISED_TOLERANCE,
    target=_TARGET,
    first=QDQ_HTP,
)
